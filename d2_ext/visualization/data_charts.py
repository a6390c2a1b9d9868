"""Histograms of a data set's classes and sizes as an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_histograms"]

MAX_BARS = 30
OCTAVES = 2.0 ** np.arange(0, 11.25, 0.25)  # px, edges of the bars
BORDERS_PX = (32, 96)  # between COCO's small, medium and large
_COLORS = ("#3b6fb6", "#e08a2e", "#4f9d57", "#9b59a6")


def draw_histograms(
    path: str | Path,
    classes: Sequence[str],
    per_class: Mapping[str, Sequence[int]],
    sides: Mapping[str, Sequence[float]],
    crowding: Mapping[str, Sequence[int]],
) -> None:
    """Draw objects a class, sizes of objects and objects an image, a color a split.

    Args:
        path: .png, .jpg or .pdf to write.
        classes: their names; of many the 30 most frequent are drawn.
        per_class: split -> number of objects of each class.
        sides: split -> square root of each object's area, px.
        crowding: split -> number of objects of each image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    totals = np.sum([list(counts) for counts in per_class.values()], axis=0)
    shown = np.argsort(-totals, kind="stable")[:MAX_BARS]
    figure = Figure(figsize=(14, max(4.0, 0.28 * len(shown) + 1.5)), layout="constrained")
    FigureCanvasAgg(figure)
    bars, size, crowd = figure.subplots(1, 3)
    step = 0.8 / len(per_class)
    for i, (split, color) in enumerate(zip(per_class, _COLORS * len(per_class))):
        counts = [per_class[split][k] for k in shown]
        bars.barh(np.arange(len(shown)) + i * step, counts, step, color=color, label=split)
        size.hist(
            np.clip(sides[split], 1, 2048),
            OCTAVES,
            histtype="stepfilled",
            alpha=0.55,
            color=color,
            label=split,
        )
        most = max((max(values, default=0) for values in crowding.values()), default=0)
        crowd.hist(crowding[split], np.linspace(0, max(most, 1) + 1, 31), alpha=0.55, color=color, label=split)
    bars.set_yticks(np.arange(len(shown)) + 0.4 - step / 2, [classes[k] for k in shown])
    bars.invert_yaxis()
    more = f" (the {MAX_BARS} most frequent of {len(classes)})" if len(classes) > MAX_BARS else ""
    _finish(bars, f"objects a class{more}", "objects")
    bars.set_xscale("symlog", linthresh=10)
    size.set_xscale("log", base=2)
    size.set_xticks([2**k for k in range(1, 12, 2)], [str(2**k) for k in range(1, 12, 2)])
    for border in BORDERS_PX:
        size.axvline(border, color="#555555", linewidth=1, linestyle=":")
    _finish(size, "size of objects; dotted: 32 and 96 px", "square root of the area, px")
    _finish(crowd, "objects an image", "objects")
    size.legend(frameon=False)
    crowd.legend(frameon=False)
    size.set_ylabel("objects")
    crowd.set_ylabel("images")
    crowd.set_yscale("symlog", linthresh=1)
    figure.savefig(path, dpi=100)


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(label)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
