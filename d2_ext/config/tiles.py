"""Config keys of inference on tiles of large images."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_tiles_config(cfg: CfgNode) -> None:
    """Add ``TEST.TILE``."""
    tile = cfg.TEST.TILE = CfgNode()
    # Side of a square tile in px of the image; 0 = whole images. Each tile is then treated as an image, resized to
    # INPUT.MIN_SIZE_TEST: choose SIZE so that objects get the size they had in training.
    tile.SIZE = 0
    tile.OVERLAP = 0.2  # least share of SIZE that neighbours see both, 0 to 0.9; larger than the objects is best
    tile.BATCH_SIZE = 4  # tiles computed at a time
    # IoU, in the part that two tiles share, from which their detections of one class are the same object.
    tile.MERGE_IOU = 0.5
    tile.WHOLE_IMAGE = False  # also look at the whole image, resized: for objects larger than a tile
