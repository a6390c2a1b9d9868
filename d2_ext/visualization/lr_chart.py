"""The loss over the learning rate as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

__all__ = ["draw_lr_range"]


def draw_lr_range(
    path: str | Path, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], proposal: float | None
) -> None:
    """Draw a learning-rate range test.

    Args:
        path: .png, .jpg, .pdf or .svg to write.
        rates: rising; the axis is logarithmic.
        losses: of each rate; those that are not finite are left out.
        smoothed: their running means.
        proposal: rate to mark; None marks none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(rates, losses, color="#3b6fb6", linewidth=0.8, alpha=0.4, label="loss of each batch")
    axes.plot(rates, smoothed, color="#3b6fb6", linewidth=1.8, label="running mean")
    if proposal is not None:
        axes.axvline(proposal, color="#e08a2e", linewidth=1.5, linestyle="--", label=f"proposed: {proposal:.2g}")
    finite = [value for value in smoothed if math.isfinite(value)]
    if finite:  # the end of the curve would flatten all before it
        axes.set_ylim(0.8 * min(finite), 1.1 * max(finite[0], 2 * min(finite)))
    axes.set_xscale("log")
    axes.set_xlabel("SOLVER.BASE_LR")
    axes.set_ylabel("total loss")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
