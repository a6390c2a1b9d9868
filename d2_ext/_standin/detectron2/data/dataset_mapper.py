"""From a record of a data set to what a model takes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads the image of a record, augments it and its annotations, and makes tensors of them.

    Made of a config, ``DatasetMapper(cfg, is_train)``, or of these arguments.

    Args:
        is_train: whether annotations are wanted.
        image_format: see :func:`detection_utils.read_image`.
        use_keypoint: needs Detectron2 itself, as do ``keypoint_hflip_indices`` and ``precomputed_proposal_topk``.
        instance_mask_format: "polygon" or "bitmask".
        recompute_boxes: take boxes anew from the augmented masks.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: Sequence[int] | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        if use_keypoint or precomputed_proposal_topk is not None:
            raise NotImplementedError("MODEL.KEYPOINT_ON and MODEL.LOAD_PROPOSALS need Detectron2 itself.")
        assert use_instance_mask or not recompute_boxes, (
            "recompute_boxes takes boxes from masks: set use_instance_mask."
        )
        self.augmentations = T.AugmentationList(augmentations)
        self.is_train, self.image_format, self.recompute_boxes = is_train, image_format, recompute_boxes
        self.use_instance_mask, self.instance_mask_format = use_instance_mask, instance_mask_format
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", augmentations)

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        """The arguments that a config asks for; ``INPUT.CROP`` comes before all other augmentations."""
        cropped = is_train and cfg.INPUT.CROP.ENABLED
        crop = [T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)] if cropped else []
        return {
            "is_train": is_train,
            "augmentations": crop + utils.build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "precomputed_proposal_topk": 0 if cfg.MODEL.LOAD_PROPOSALS else None,
            "recompute_boxes": bool(cropped and cfg.MODEL.MASK_ON),  # a crop may cut a shape more than its box
        }

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        """Put ``instances`` in the place of ``annotations``, without crowds and what is no longer in the image.

        Subclasses override it; users of Detectron2 know it by this name.
        """
        unused = {"keypoints"} if self.use_instance_mask else {"keypoints", "segmentation"}
        annotations = [anno for anno in dataset_dict.pop("annotations") if not anno.get("iscrowd", 0)]
        objects = [{key: value for key, value in anno.items() if key not in unused} for anno in annotations]
        utils.transform_objects(objects, transforms, image_shape)
        instances = utils.annotations_to_instances(objects, image_shape, self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record, which is left as it is; SizeMismatchError if the image has another size than it says.

        Gives a copy with ``image``, a (C, H, W) tensor of the image's type; in training ``instances`` instead of
        ``annotations``; ``sem_seg``, (H, W) int64, if there was a ``sem_seg_file_name``. ``height`` and ``width`` are
        those of the file.
        """
        record = copy.deepcopy(dataset_dict)
        image = utils.read_image(record["file_name"], self.image_format)
        utils.check_image_size(record, image)
        labels = record.pop("sem_seg_file_name", None)
        inputs = T.AugInput(image, sem_seg=None if labels is None else utils.read_image(labels, "L")[:, :, 0])
        transforms = self.augmentations(inputs)
        if self.is_train and "annotations" in record:
            self._transform_annotations(record, transforms, inputs.image.shape[:2])
        record.pop("annotations", None)
        if inputs.sem_seg is not None:
            record["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
        return {**record, "image": torch.from_numpy(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))}
