"""Active shares of sparse towers over a training, beside their targets."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext.errors import DatasetError

import numpy as np
from matplotlib.figure import Figure

PREFIX = "mask_ratio/"
COLORS = {"cls": "tab:blue", "reg": "tab:orange", "target": "black"}
Curves = dict[str, dict[str, np.ndarray]]


def read_mask_ratios(path: str | Path) -> Curves:
    """Read the active shares from a run's ``metrics.json``.

    Args:
        path: one JSON object a line; lines without shares (evaluations) are passed over.

    Returns:
        By level ("all" for all positions together, then "p3", ...) and branch ("cls", "reg", "target"): (T, 2),
        iteration and share.

    Raises:
        DatasetError: there is no such file, a line is no JSON object, or no line holds shares.
    """
    if not Path(path).is_file():
        raise DatasetError(f"There is no file {Path(path).resolve()}. Trainings write metrics.json to OUTPUT_DIR.")
    found: dict[str, dict[str, list[tuple[int, float]]]] = {"all": {}}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
            shares = [(key.removeprefix(PREFIX), record[key]) for key in record if key.startswith(PREFIX)]
            for key, share in shares:
                level, _, branch = key.rpartition("_")
                found.setdefault(level or "all", {}).setdefault(branch, []).append(
                    (int(record["iteration"]), float(share))
                )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DatasetError(f"{path}, line {number}: not a line of metrics.json ({error!r}).") from error
    if not found["all"]:
        raise DatasetError(
            f"{path} holds no {PREFIX}* values. Only trainings of models with sparse towers write them (CEASC, "
            "MODEL.FCOS.SPARSE, MODEL.DEFCN.SPARSE)."
        )
    return {level: {k: np.array(v) for k, v in branches.items()} for level, branches in found.items()}


def plot_mask_ratios(curves: Curves, *, title: str = "") -> Figure:
    """Plot the active share of each branch and its target: a panel for all positions, then one a level.

    Args:
        curves: see ``read_mask_ratios``.
        title: above the panels.
    """
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (level, branches) in zip(axes, curves.items()):
        for branch, points in branches.items():
            style = "--" if branch == "target" else "-"
            panel.plot(points[:, 0], 100 * points[:, 1], style, color=COLORS.get(branch), linewidth=1.2, label=branch)
        panel.set(title="all positions" if level == "all" else level, xlabel="iteration", ylabel="active (%)")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    for panel in list(axes)[len(curves) :]:
        panel.set_visible(False)
    figure.suptitle(title)
    return figure
