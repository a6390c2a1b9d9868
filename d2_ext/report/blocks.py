"""What a section of a report is made of: texts, tables, charts, images, and notes on what is missing.

Nothing here is HTML. The page's template escapes every text, so names out of data sets may hold any character. The
two exceptions are :class:`Chart` and :class:`Image`: their SVG and data addresses are made by this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Verbatim:
    """A text whose lines and spaces count."""

    text: str
    kind: str = field(default="verbatim", init=False)


@dataclass(frozen=True)
class Missing:
    """Something that could not be shown: why not, and the command that makes what it needs (empty if none does)."""

    why: str
    command: str = ""
    kind: str = field(default="missing", init=False)


@dataclass(frozen=True)
class Tiles:
    """Large figures with their names."""

    values: Mapping[str, str]
    kind: str = field(default="tiles", init=False)


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first ``texts`` columns are left-aligned, the others are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class HeatTable:
    """A table of counts, colored by the share in [0, 1] of each cell."""

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[str]
    counts: Sequence[Sequence[int]]
    shares: Sequence[Sequence[float]]
    kind: str = field(default="heat", init=False)


@dataclass(frozen=True)
class Chart:
    """An SVG made by :mod:`d2_ext.report.charts`, with a text for those who do not see it."""

    svg: str
    alt: str
    caption: str
    wide: bool = False
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True)
class Box:
    """A rectangle on an image, px of the image as it is shown; ``look`` is a class of the style sheet."""

    x: float
    y: float
    width: float
    height: float
    look: str
    label: str


@dataclass(frozen=True)
class Image:
    """An image as a data address, once with each set of boxes (title -> boxes) side by side."""

    name: str
    address: str
    width: int
    height: int
    panels: Mapping[str, Sequence[Box]]
    alt: str
    caption: str
    kind: str = field(default="image", init=False)


Block = Text | Verbatim | Missing | Tiles | Table | HeatTable | Chart | Image


@dataclass(frozen=True)
class Section:
    """A heading with its anchor and blocks."""

    key: str
    title: str
    blocks: Sequence[Block]


class MissingInput(Exception):
    """Raised by a section whose input is not there; becomes a :class:`Missing` block."""

    def __init__(self, why: str, command: str = "") -> None:
        super().__init__(why)
        self.block = Missing(why, command)


def number(value: float | None, digits: int = 1) -> str:
    """A number as it is shown; a dash for None and for what is not finite."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as per cent; a dash for None and for what is not finite."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %"
