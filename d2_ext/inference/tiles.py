"""Where a large image is cut into overlapping tiles."""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.data.tiles import tile_starts


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
    that neighbors share at least ``overlap * size`` px. An image that fits into one tile is one tile.

    Args:
        height, width: of the image, px.
        size: side of a tile, px, at least 1.
        overlap: in [0, 0.9].

    Example:
        >>> [tile.box for tile in make_tiles(100, 180, 100, 0.2)]
        [(0, 0, 100, 100), (80, 0, 180, 100)]
    """
    rows, columns = tile_starts(height, size, overlap), tile_starts(width, size, overlap)
    tile_height, tile_width = min(size, height), min(size, width)
    boxes = [(x, y, x + tile_width, y + tile_height) for y in rows for x in columns]
    return [Tile(box, (box[0] > 0, box[1] > 0, box[2] < width, box[3] < height)) for box in boxes]
