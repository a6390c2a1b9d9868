"""Crops that depend on the record: its tile, or a place where one of its objects is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

__all__ = ["CropMapper", "ObjectCrop", "TileCrop"]


class TileCrop(T.Augmentation):
    """Crops to :attr:`tile`, which is set for each record; the whole image if it is None."""

    def __init__(self) -> None:
        self.tile: tuple[int, int, int, int] | None = None

    def look_at(self, record: dict[str, Any]) -> None:
        """Take the tile of the record that comes next."""
        self.tile = record["tile"]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The crop, for an (H, W, C) image."""
        return T.NoOpTransform() if self.tile is None else T.CropTransform(*self.tile)

    def __repr__(self) -> str:
        return "TileCrop()"


class ObjectCrop(T.RandomCrop):
    """Detectron2's random crop that shows an object in a share of the images.

    A crop at a random place of an image with few objects mostly shows none. Here a class of the image is drawn, then
    an object of it, so that rare classes are shown as often as frequent ones; then a place, evenly among those where
    the crop holds the whole object, or lies within it where the object is larger.

    Args:
        crop_type: of the size, as of Detectron2's ``RandomCrop``.
        crop_size: likewise, (height, width).
        share: of the images with objects whose crop is placed so, in [0, 1]; the others' place is random.
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float], share: float) -> None:
        super().__init__(crop_type, crop_size)
        self.share = share
        self.boxes = np.zeros((0, 4))  # XYXY px of the objects of the record that comes next
        self.classes = np.zeros(0, dtype=np.int64)

    def look_at(self, record: dict[str, Any]) -> None:
        """Take the objects of the record that comes next; crowds are none."""
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        self.boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        self.classes = np.array([a["category_id"] for a in objects], dtype=np.int64)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The crop, for an (H, W, C) image."""
        if not len(self.boxes) or np.random.rand() >= self.share:
            return super().get_transform(image)
        wanted = np.random.choice(np.unique(self.classes))
        x0, y0, x1, y1 = self.boxes[np.random.choice(np.flatnonzero(self.classes == wanted))]
        height, width = self.get_crop_size(image.shape[:2])
        corner = []
        for start, end, side, whole in ((x0, x1, width, image.shape[1]), (y0, y1, height, image.shape[0])):
            first, last = np.clip(sorted((math.ceil(end) - side, math.floor(start))), 0, whole - side)
            corner.append(np.random.randint(first, last + 1))
        return T.CropTransform(*corner, width, height)

    def __repr__(self) -> str:
        return f"ObjectCrop(crop_type={self.crop_type!r}, crop_size={self.crop_size}, share={self.share})"


class CropMapper:
    """A mapper whose first augmentation is a crop that looks at the record before.

    Args:
        mapper: does the work; its first augmentation is ``crop``.
        crop: sees each record. A mapper serves one record at a time, in loader processes as well.
    """

    def __init__(self, mapper: DatasetMapper, crop: TileCrop | ObjectCrop) -> None:
        self.mapper = mapper
        self.crop = crop

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one record; ``height`` and ``width`` of the result are those of its tile, if it has one."""
        self.crop.look_at(record)
        mapped = self.mapper({key: value for key, value in record.items() if key != "tile"})
        if "tile" not in record:
            return mapped
        return {**mapped, "width": record["tile"][2], "height": record["tile"][3]}
