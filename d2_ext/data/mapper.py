"""Mappers: one that names the image which cannot be used, and one that hands ignore regions to the detector."""

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

__all__ = ["IGNORE_CLASS", "CheckedMapper", "IgnoreRegionMapper"]

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
        regions = _ignore_boxes(dataset_dict)
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        kept = _transform_boxes(regions, transforms, image_shape)
        dataset_dict["instances"] = _with_regions(dataset_dict["instances"], kept)


def _ignore_boxes(dataset_dict: dict[str, Any]) -> np.ndarray:
    """(R, 4) XYXY px of the file's image: ignore regions, which are taken out of the dict, and crowd boxes."""
    dataset_dict.pop("ignore_categories", None)  # of use for evaluation only
    boxes = [
        BoxMode.convert(list(box), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for box in dataset_dict.pop("ignore_regions", [])
    ]
    boxes += [
        BoxMode.convert(list(anno["bbox"]), anno["bbox_mode"], BoxMode.XYXY_ABS)
        for anno in dataset_dict["annotations"]
        if anno.get("iscrowd", 0)
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _transform_boxes(boxes: np.ndarray, transforms: T.Transform, image_shape: tuple[int, int]) -> torch.Tensor:
    """(R, 4) to (R', 4) XYXY px of the transformed image, clipped to it, without those that nearly vanish."""
    if len(boxes) == 0:
        return torch.zeros(0, 4)
    height, width = image_shape
    boxes = np.clip(transforms.apply_box(boxes), 0, [width, height, width, height])
    large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_REGION_SIDE).all(axis=1)
    return torch.as_tensor(boxes[large], dtype=torch.float32)


def _with_regions(objects: Instances, regions: torch.Tensor) -> Instances:
    """The objects followed by the regions as rows of class -1."""
    merged = Instances(objects.image_size)
    merged.gt_boxes = Boxes(torch.cat([objects.gt_boxes.tensor, regions]))
    merged.gt_classes = torch.cat([objects.gt_classes, objects.gt_classes.new_full((len(regions),), IGNORE_CLASS)])
    return merged
