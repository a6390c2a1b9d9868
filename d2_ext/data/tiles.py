"""Training on tiles of large images: records of images become records of their tiles.

A tile's record is that of its image with a ``tile``, [x, y, width, height] in px of the file's image, and only the
boxes that the tile shows, still in px of the whole image; :class:`d2_ext.data.crops.TileCrop` cuts it out.
"""

from __future__ import annotations

import math
from typing import Any

from d2_ext.errors import ConfigError

from detectron2.config import CfgNode
from detectron2.structures import BoxMode

__all__ = ["cut_record", "tile_records", "tile_starts", "tiles_of"]

Records = list[dict[str, Any]]
Box = list[float]


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along one side of an image.

    Args:
        length: of the image's side, px.
        tile: of a tile's side, px.
        overlap: least share of a tile that it has in common with the next one, in [0, 1).

    Returns:
        As few starts as cover the side, evenly spread from 0 to ``length - tile``; [0] if one tile does.

    Example:
        >>> tile_starts(100, 40, 0.25), tile_starts(30, 40, 0.25)
        ([0, 30, 60], [0])
    """
    if length <= tile:
        return [0]
    step = max(1, tile - math.ceil(overlap * tile))  # whole px, so that rounding keeps the overlap
    count = 1 + math.ceil((length - tile) / step)
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def tiles_of(width: int, height: int, size: tuple[int, int], overlap: float) -> list[tuple[int, int, int, int]]:
    """The tiles x, y, width, height px of an image, row by row.

    Args:
        width: of the image, px.
        height: of the image, px.
        size: height and width of a tile, px; a tile is never larger than the image.
        overlap: see :func:`tile_starts`.
    """
    h, w = min(size[0], height), min(size[1], width)
    return [(x, y, w, h) for y in tile_starts(height, h, overlap) for x in tile_starts(width, w, overlap)]


def cut_record(record: dict[str, Any], tile: tuple[int, int, int, int], min_visible: float) -> dict[str, Any]:
    """The record of one tile.

    Args:
        record: of the image.
        tile: x, y, width, height px.
        min_visible: least share of a box's area that lies in the tile, in [0, 1].

    Returns:
        A new record with ``tile``. Boxes are clipped to the tile; those that show less than ``min_visible`` stand among
        ``ignore_regions``, as do ignore regions and crowds that reach into it (which are clipped whatever they show).
    """
    annotations, regions = [], []
    for annotation in record["annotations"]:
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
        visible = _clip(box, tile)
        if visible is None:
            continue
        share = visible[2] * visible[3] / (box[2] * box[3])
        if share >= min_visible or annotation.get("iscrowd", 0):
            annotations.append({**annotation, "bbox": visible, "bbox_mode": BoxMode.XYWH_ABS})
        else:
            regions.append(visible)
    old = record.get("ignore_regions", [])
    kept = [i for i, box in enumerate(old) if _clip(box, tile) is not None]
    cut = {**record, "annotations": annotations, "ignore_regions": [_clip(old[i], tile) for i in kept] + regions}
    cut.pop("ignore_categories", None)  # of use for evaluation only
    return {**cut, "tile": list(tile)}


def tile_records(cfg: CfgNode, records: Records) -> Records:
    """All tiles of all records, as ``INPUT.TILES`` says; empty ones only if empty images are kept, too.

    Args:
        cfg: reads ``INPUT.TILES`` and ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.
        records: with ``width``, ``height`` and ``annotations``.

    Raises:
        ConfigError: for a size, overlap or share that cannot be.
    """
    tiles = cfg.INPUT.TILES
    size = tuple(tiles.SIZE)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ConfigError(f"INPUT.TILES.SIZE is {list(size)}. Expected height and width in px, such as [1024, 1024].")
    if not 0 <= tiles.OVERLAP < 1:
        raise ConfigError(f"INPUT.TILES.OVERLAP is {tiles.OVERLAP}. Expected a share in [0, 1), such as 0.2.")
    if not 0 <= tiles.MIN_VISIBLE <= 1:
        raise ConfigError(f"INPUT.TILES.MIN_VISIBLE is {tiles.MIN_VISIBLE}. Expected a share in [0, 1], such as 0.4.")
    if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
        raise ConfigError(
            "INPUT.TILES.ENABLED=True works for boxes only, but MODEL.MASK_ON or MODEL.KEYPOINT_ON is set. Turn off "
            "the one or the other."
        )
    cut = [
        cut_record(record, tile, tiles.MIN_VISIBLE)
        for record in records
        for tile in tiles_of(record["width"], record["height"], size, tiles.OVERLAP)
    ]
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return cut
    return [record for record in cut if any(not a.get("iscrowd", 0) for a in record["annotations"])]


def _clip(box: Box, tile: tuple[int, int, int, int]) -> Box | None:
    """The part of a box XYWH inside a tile; None if there is none."""
    x0, y0 = max(box[0], tile[0]), max(box[1], tile[1])
    x1, y1 = min(box[0] + box[2], tile[0] + tile[2]), min(box[1] + box[3], tile[1] + tile[3])
    return [x0, y0, x1 - x0, y1 - y0] if x1 > x0 and y1 > y0 else None
