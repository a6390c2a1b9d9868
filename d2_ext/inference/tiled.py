"""Detection on images much larger than those a detector was trained on: tile by tile, merged."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from d2_ext.config.checks import RULES, check_values
from d2_ext.inference.batches import ImageBatches
from d2_ext.inference.merge import merge_tiles
from d2_ext.inference.tiles import Tile, make_tiles

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import pairwise_intersection
from PIL import Image
from torch import Tensor, nn

# Around what the first look finds, px of the reduced image: it places a box of few pixels badly, and what stands beside
# a found object is likely to be one that it misses.
MARGIN = 8


class TiledDetector(nn.Module):
    """A detector around a detector: cuts images into overlapping tiles, and merges what is found on them.

    It takes the place of the model in evaluation. Images come in their own size (:func:`without_resizing`): tiles
    are cut first, and resized then. Besides the image and its boxes, memory is that of one batch of tiles.

    With ``TEST.TILE.SELECT`` a first look at the reduced image, by the same detector and on tiles as well, chooses the
    tiles that are computed.

    Args:
        model: a detector in evaluation mode.
        cfg: ``TEST.TILE`` and the input sizes for testing are used.
        batch_size: tiles computed at a time; ``TEST.TILE.BATCH_SIZE`` if not given.
        bfloat16: see :class:`ImageBatches`.

    Raises:
        ConfigError: a value of ``TEST.TILE`` out of its range.
    """

    def __init__(
        self, model: nn.Module, cfg: CfgNode, *, batch_size: int | None = None, bfloat16: bool = False
    ) -> None:
        super().__init__()
        check_values(cfg, [key for key in RULES if key.startswith("TEST.TILE.")])
        keys = cfg.TEST.TILE
        self.model = model
        self.training = model.training
        self.size, self.overlap = keys.SIZE, keys.OVERLAP
        self.iou, self.whole_image = keys.MERGE_IOU, keys.WHOLE_IMAGE
        self.batch_size = keys.BATCH_SIZE if batch_size is None else batch_size
        self.reduction, self.select_score = keys.SELECT, keys.SELECT_SCORE
        self._detect = ImageBatches(model, cfg, bfloat16=bfloat16)
        if self.reduction:
            # The same modules and weights in a detector of its own, whose limits are not those of the results: the
            # score threshold of the first look, and no number of detections that a crowd in one place could exhaust.
            self.scout = copy.copy(model)
            limits = {"test_score_thresh": self.select_score, "max_detections_per_image": sys.maxsize}
            for name, value in limits.items():
                if hasattr(model, name):
                    setattr(self.scout, name, value)
            self._scout = ImageBatches(self.scout, cfg, bfloat16=bfloat16)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect, in Detectron2's format of inference.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W) uint8, whole images, channels in the order of
                ``INPUT.FORMAT``; and optionally ``height`` and ``width`` of the wanted frame.

        Returns:
            ``{"instances": ...}`` per image, boxes XYXY px of the wanted frame, on the CPU; with ``TEST.TILE.SELECT``
            also ``"tiles"``, the number of tiles that were computed, and of all.
        """
        results: list[dict[str, Any]] = []
        for item in batched_inputs:
            image = item["image"].permute(1, 2, 0).cpu().numpy()
            height, width = image.shape[:2]
            chosen = self.select(image)
            frame = item.get("height", height), item.get("width", width)
            results.append({"instances": detector_postprocess(self.detect(image, chosen), *frame)})
            if self.reduction:
                results[-1]["tiles"] = len(chosen), len(self.tiles(height, width))
        return results

    def detect(self, image: np.ndarray, tiles: Sequence[Tile] | None = None) -> Instances:
        """Detect on one image.

        Args:
            image: (H, W, 3) uint8, channels in the order of ``INPUT.FORMAT``.
            tiles: that are computed; those of :meth:`select` if not given.

        Returns:
            Detections in px of the image, best first, on the CPU.
        """
        height, width = image.shape[:2]
        tiles = self.select(image) if tiles is None else tiles
        found = list(self._on_tiles(self._detect, image, tiles))
        whole = [tile.box for tile in tiles] == [(0, 0, width, height)]
        return found[0] if whole else merge_tiles(tiles, found, (height, width), iou=self.iou)

    def select(self, image: np.ndarray) -> Sequence[Tile]:
        """The tiles to compute: all :meth:`tiles`, or with ``TEST.TILE.SELECT`` those that the first look chooses.

        What it finds on the reduced image, grown by ``MARGIN``, chooses every tile that it touches; what it does not
        find is lost, unless a tile is chosen for something else. An image of one tile is always computed.

        Args:
            image: as of :meth:`detect`.
        """
        tiles = self.tiles(*image.shape[:2])
        if not self.reduction or len(tiles) == 1:
            return tiles
        reduced = np.asarray(Image.fromarray(image).reduce(self.reduction))  # means of squares, in integer px
        height, width = reduced.shape[:2]
        looks = make_tiles(height, width, self.size, self.overlap)
        areas = Boxes(torch.tensor([tile.box for tile in tiles], dtype=torch.float32))
        chosen = torch.zeros(len(tiles), dtype=torch.bool)
        for look, found in zip(looks, self._on_tiles(self._scout, reduced, looks)):
            boxes = found.pred_boxes.tensor
            if not hasattr(self.scout, "test_score_thresh"):  # a two-stage detector keeps its own in a head
                boxes = boxes[found.scores > self.select_score]
            x, y = look.box[:2]
            grown = boxes + boxes.new_tensor([x - MARGIN, y - MARGIN, x + MARGIN, y + MARGIN])
            chosen |= (pairwise_intersection(areas, Boxes(grown * self.reduction)) > 0).any(dim=1)
        return [tile for tile, is_chosen in zip(tiles, chosen.tolist()) if is_chosen]

    def _on_tiles(self, detect: ImageBatches, image: np.ndarray, tiles: Sequence[Tile]) -> Iterator[Instances]:
        """Detections of each tile, in its own frame."""
        for start in range(0, len(tiles), self.batch_size):
            boxes = [tile.box for tile in tiles[start : start + self.batch_size]]
            yield from detect([image[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])

    @property
    def activation_masks(self) -> Callable[[list[dict[str, Any]]], list[dict[str, dict[str, Tensor]]]]:
        """Function from batched inputs, as of :meth:`forward`, to masks; only around models with sparse towers.

        It returns per image, by level name and branch, bool maps over the whole image in cells of the tiles' maps.
        Where tiles overlap, a cell is active if it is in one of them. The look at the whole image is left out, and in
        tiles that ``TEST.TILE.SELECT`` skips nothing is active.
        """
        if not hasattr(self.model, "activation_masks"):
            raise AttributeError("Only a head with sparse towers has activation masks.")
        return lambda batch: [self.masks_of(item["image"].permute(1, 2, 0).cpu().numpy()) for item in batch]

    def masks_of(self, image: np.ndarray) -> dict[str, dict[str, Tensor]]:
        """:attr:`activation_masks` of one image (H, W, 3) uint8, channels in the order of ``INPUT.FORMAT``."""
        height, width = image.shape[:2]
        joined: dict[str, dict[str, Tensor]] = {}
        chosen = self.select(image)
        for tile in make_tiles(height, width, self.size, self.overlap):
            if tile not in chosen and joined:  # the first one is asked for names and sizes in any case
                continue
            x0, y0, x1, y1 = tile.box
            (masks,) = self.model.activation_masks([self._detect.prepare(image[y0:y1, x0:x1])])
            for level, branches in masks.items():
                wholes = joined.setdefault(level, {})
                for branch, mask in branches.items():
                    rows, columns = mask.shape
                    if branch not in wholes:
                        # Cells as large as those of a tile's mask, or a little larger: smaller ones would leave gaps.
                        wholes[branch] = mask.new_zeros(rows * height // (y1 - y0), columns * width // (x1 - x0))
                    # Each active cell of the tile goes to the nearest cell of the whole image.
                    whole, active = wholes[branch], (mask & (tile in chosen)).nonzero()
                    y = y0 + (active[:, 0] + 0.5) * (y1 - y0) / rows
                    x = x0 + (active[:, 1] + 0.5) * (x1 - x0) / columns
                    whole[(y * whole.shape[0] / height).long(), (x * whole.shape[1] / width).long()] = True
        return joined

    def tiles(self, height: int, width: int) -> Sequence[Tile]:
        """Tiles of an image, the image itself at the end if ``TEST.TILE.WHOLE_IMAGE``."""
        tiles = make_tiles(height, width, self.size, self.overlap)
        whole = Tile((0, 0, width, height), (False,) * 4)
        return [*tiles, whole] if self.whole_image and len(tiles) > 1 else tiles


def without_resizing(cfg: CfgNode) -> CfgNode:
    """Config whose test loader gives images in their own size if ``TEST.TILE.SIZE`` is set; else the same config."""
    if not cfg.TEST.TILE.SIZE:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.freeze()
    return cfg


def tiled_if_set(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model, in a :class:`TiledDetector` if ``TEST.TILE.SIZE`` is set."""
    return TiledDetector(model, cfg) if cfg.TEST.TILE.SIZE else model
