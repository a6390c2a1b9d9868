"""Mappers: one that names the image which cannot be used, one for testing, one that hands on ignore regions."""

from __future__ import annotations

from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.images import check_image, decode_fully

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

__all__ = ["IGNORE_CLASS", "CheckedMapper", "IgnoreRegionMapper", "TestMapper"]

IGNORE_CLASS = -1
MIN_REGION_SIDE = 1.0  # px of the transformed image


class CheckedMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` that says which image cannot be used, and why."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Read and augment one image.

        Raises:
            DatasetError: the image is missing, broken, or not what :func:`check_image` lets pass.
        """
        path = dataset_dict["file_name"]
        size = (dataset_dict["width"], dataset_dict["height"]) if {"width", "height"} <= dataset_dict.keys() else None
        check_image(path, size)
        try:
            return super().__call__(dataset_dict)
        except Exception:
            decode_fully(path)  # is it the file? If not, the error is what it was
            raise


class TestMapper(CheckedMapper):
    """The mapper of testing that keeps the objects, for what is measured beside the detections.

    ``instances`` has the boxes of the record without crowds, in px of the resized image, and their classes. Images of
    records without ``annotations`` have none.
    """

    __test__ = False  # of pytest: it is no test

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the stock mapper for testing."""
        return super().from_config(cfg, is_train=False)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Read and resize one image; errors as of :class:`CheckedMapper`."""
        item = super().__call__(dataset_dict)
        if item is None or "annotations" not in dataset_dict:
            return item
        objects = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        height, width = item["image"].shape[-2:]
        item["instances"] = Instances((height, width))
        item["instances"].gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        item["instances"].gt_boxes.scale(width / dataset_dict["width"], height / dataset_dict["height"])
        item["instances"].gt_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        return item


class IgnoreRegionMapper(CheckedMapper):
    """The mapper that keeps ignore regions for training.

    Ignore regions are ``record["ignore_regions"]`` (XYWH px of the file's image) and crowd annotations. They go
    through the same augmentations as the image (all four corners; the enclosing box is kept), are clipped to it, and
    stand at the end of ``instances`` as rows with ``gt_classes == -1``. A region that keeps less than 1 px in either
    direction is dropped. Testing is as in the stock mapper.

    It is made for detectors of boxes: such rows have no mask and no keypoints.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the stock mapper.

        Raises:
            ConfigError: if the config trains masks or keypoints.
        """
        if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
            raise ConfigError(
                "INPUT.IGNORE_REGIONS=True works for boxes only, but MODEL.MASK_ON or MODEL.KEYPOINT_ON is set. "
                "Turn off the one or the other."
            )
        return super().from_config(cfg, is_train)

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        """Called by the stock mapper in training; ``image_shape`` is (height, width) after the augmentations."""
        # 1. Take the regions out of the record: (V, 4) XYXY px of the file's image, those of the data set and crowds.
        dataset_dict.pop("ignore_categories", None)  # of use for evaluation only
        boxes = [
            *((box, BoxMode.XYWH_ABS) for box in dataset_dict.pop("ignore_regions", [])),
            *((a["bbox"], a["bbox_mode"]) for a in dataset_dict["annotations"] if a.get("iscrowd", 0)),
        ]
        regions = [BoxMode.convert(list(box), mode, BoxMode.XYXY_ABS) for box, mode in boxes]
        # 2. The stock mapper moves the objects, and drops the crowds.
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        # 3. Move the regions likewise, clip them to the image, and drop those that nearly vanish.
        height, width = image_shape
        moved = np.array(regions, dtype=np.float64).reshape(-1, 4)
        if len(moved):
            moved = np.clip(transforms.apply_box(moved), 0, [width, height, width, height])
        large = ((moved[:, 2:] - moved[:, :2]) >= MIN_REGION_SIDE).all(axis=1)
        kept = torch.as_tensor(moved[large], dtype=torch.float32)
        # 4. Append them to the objects as rows of class -1.
        objects = dataset_dict["instances"]
        merged = Instances(objects.image_size)
        merged.gt_boxes = Boxes(torch.cat([objects.gt_boxes.tensor, kept]))
        merged.gt_classes = torch.cat([objects.gt_classes, objects.gt_classes.new_full((len(kept),), IGNORE_CLASS)])
        dataset_dict["instances"] = merged
