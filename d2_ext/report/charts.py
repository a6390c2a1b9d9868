"""Charts as SVG that a page can hold: their colors are those of the page, light or dark, and their text stays text."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
# Colors that stand for a property of the style sheet and are replaced by it in the SVG.
INK, GRID = "#010203", "#010204"
SERIES = [f"#0102{index:02x}" for index in range(0x10, 0x18)]
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5))]  # told apart without colors too
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}
_numbers = itertools.count(1)  # ids must be unique on a page, and matplotlib numbers those of each figure anew
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "d2_ext",
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def line_chart(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
) -> str:
    """Draw lines over a common axis; a series of one point becomes a marker.

    Args:
        series: name -> (x, y), in the order of the legend.
        x_label: below the chart.
        y_label: beside it.
        log: logarithmic y axis; values that are not positive are left out.
        y_range: limits of y.
        x_range: limits of x.

    Returns:
        SVG without width and height.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.3), layout="constrained")
        axes = figure.add_subplot()
        _draw_lines(axes, series, log=log)
        axes.set(xlabel=x_label, ylabel=y_label)
        if y_range:
            axes.set_ylim(*y_range)
        if x_range:
            axes.set_xlim(*x_range)
        if len(series) > 1:
            axes.legend(ncols=1 if len(series) <= 5 else 2)
        return _to_svg(figure)


def panels_chart(panels: Mapping[str, Series], *, x_label: str, y_label: str, columns: int = 3) -> str:
    """Draw small charts of equal axes side by side, with one legend.

    Args:
        panels: title -> series; all panels have the same names.
        x_label: below each.
        y_label: left of each row.
        columns: at most so many in a row.

    Returns:
        SVG without width and height.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11.2, 2.3 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, series) in zip(grid.flat, panels.items()):
            _draw_lines(axes, series, log=False)
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            axes.tick_params(labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel(y_label)
        for column, axes in enumerate(grid[-1]):
            (axes if axes.get_visible() else grid[-2][column]).set_xlabel(x_label)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        return _to_svg(figure)


def bar_chart(groups: Mapping[str, Sequence[float]], labels: Sequence[str], *, x_label: str) -> str:
    """Draw horizontal bars, a group a label; what is not finite has no bar.

    Args:
        groups: name of the legend -> one value a label.
        labels: from top to bottom.
        x_label: below the chart.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 0.9 + 0.17 * len(labels) * (len(groups) + 0.6)), layout="constrained")
        axes = figure.add_subplot()
        thickness = 0.8 / len(groups)
        for index, (name, values) in enumerate(groups.items()):
            places = [row + (index - (len(groups) - 1) / 2) * thickness for row in range(len(labels))]
            widths = [value if math.isfinite(value) else 0.0 for value in values]
            axes.barh(places, widths, thickness, label=name, color=SERIES[index % len(SERIES)])
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
        if len(groups) > 1:
            figure.legend(loc="outside upper center", ncols=len(groups))
        return _to_svg(figure)


def _draw_lines(axes: Axes, series: Series, *, log: bool) -> None:
    for index, (name, (x, y)) in enumerate(series.items()):
        color, dashes = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
        marker = "o" if len(x) < 3 else None
        axes.plot(x, y, label=name, marker=marker, color=color, linestyle=dashes, linewidth=1.6)
    if log and any(0 < value < math.inf for _, y in series.values() for value in y):
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _to_svg(figure: Figure) -> str:
    """Drop what a page has no use for, prefix the ids, and let the style sheet give the colors."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):  # the style would hold for the whole page
                parent.remove(child)
    prefix = f"chart{next(_numbers)}-"
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, prefix + value)
            elif name in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(name, f"#{prefix}{value[1:]}")
            else:
                value = value.replace("url(#", f"url(#{prefix}")
                if name == "style":
                    value = re.sub(r"#0102[0-9a-f]{2}", lambda match: _VARIABLES.get(match[0], match[0]), value)
                element.set(name, value)
    for name in ("width", "height"):  # px are the page's business, the view box keeps the ratio
        root.attrib.pop(name, None)
    root.set("aria-hidden", "true")
    return ElementTree.tostring(root, encoding="unicode")
