"""Where a large image is cut into overlapping tiles."""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.data.tiles import tile_starts
from d2_ext.errors import ConfigError

MAX_OVERLAP = 0.9


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        box: (x0, y0, x1, y1), px of the whole image.
        inner: which of its left, top, right and bottom sides are cuts through the image, not borders of it.
    """

    box: tuple[int, int, int, int]
    inner: tuple[bool, bool, bool, bool]


def make_tiles(height: int, width: int, size: int, overlap: float) -> list[Tile]:
    """Cover an image with tiles, row by row.

    All tiles of an image have the same size, ``min(size, height)`` by ``min(size, width)``; they are spread evenly, so
    that neighbours share at least ``overlap * size`` px. An image that fits into one tile is one tile.

    Args:
        height, width: of the image, px.
        size: side of a tile, px.
        overlap: in [0, 0.9].

    Raises:
        ConfigError: for a size below 1 px, and an overlap out of its range.

    Example:
        >>> [tile.box for tile in make_tiles(100, 180, 100, 0.2)]
        [(0, 0, 100, 100), (80, 0, 180, 100)]
    """
    if size < 1 or not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(
            f"Tiles of {size} px with overlap {overlap}: expected at least 1 px and an overlap from 0 to {MAX_OVERLAP}."
        )
    rows, columns = tile_starts(height, size, overlap), tile_starts(width, size, overlap)
    tile_height, tile_width = min(size, height), min(size, width)
    return [_tile(x, y, tile_width, tile_height, width, height) for y in rows for x in columns]


def _tile(x: int, y: int, tile_width: int, tile_height: int, width: int, height: int) -> Tile:
    box = (x, y, x + tile_width, y + tile_height)
    return Tile(box, (box[0] > 0, box[1] > 0, box[2] < width, box[3] < height))
