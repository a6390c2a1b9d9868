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
    """Reads the picture of a record, augments it, and turns its annotations into ``Instances``.

    Subclasses may override :meth:`_transform_annotations` to carry further data along.

    Args:
        is_train: False drops the annotations.
        augmentations: applied in order.
        image_format: of the picture, see :func:`detection_utils.read_image`.
        use_instance_mask: keep ``segmentation``.
        use_keypoint: keep ``keypoints``.
        instance_mask_format: ``"polygon"`` or ``"bitmask"``.
        keypoint_hflip_indices: see :func:`detection_utils.create_keypoint_hflip_indices`.
        precomputed_proposal_topk: must be None; proposals are outside the subset.
        recompute_boxes: take the boxes from the transformed masks, which fit tighter after a crop.
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
        assert use_instance_mask or not recompute_boxes, "recompute_boxes takes boxes from masks: set use_instance_mask"
        if precomputed_proposal_topk is not None:
            raise NotImplementedError("precomputed proposals (MODEL.LOAD_PROPOSALS) need Detectron2 itself")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        mode = "training" if is_train else "inference"
        logger.info(f"[DatasetMapper] Augmentations used in {mode}: {augmentations}")

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the constructor; the crop, if enabled, comes before the scaling."""
        augmentations = utils.build_augmentation(cfg, is_train)
        crop = cfg.INPUT.CROP.ENABLED and is_train
        if crop:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        args = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": bool(crop and cfg.MODEL.MASK_ON),
        }
        if cfg.MODEL.KEYPOINT_ON:
            args["keypoint_hflip_indices"] = utils.create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
        if cfg.MODEL.LOAD_PROPOSALS:
            kind = "TRAIN" if is_train else "TEST"
            args["precomputed_proposal_topk"] = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{kind}"]
        return args

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace ``annotations`` by ``instances``, without crowds and without what the transforms left empty.

        Args:
            dataset_dict: edited in place.
            transforms: what was done to the picture.
            image_shape: (height, width) px of the transformed picture.
        """
        dropped = [key for key, used in _OPTIONAL_KEYS if not getattr(self, used)]
        flips = self.keypoint_hflip_indices
        annos = [
            utils.transform_instance_annotations(anno, transforms, image_shape, keypoint_hflip_indices=flips)
            for anno in (
                {key: value for key, value in anno.items() if key not in dropped}
                for anno in dataset_dict.pop("annotations")
                if anno.get("iscrowd", 0) == 0
            )
        ]
        instances = utils.annotations_to_instances(annos, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: with ``file_name``; left as it is.

        Returns:
            A copy with ``image`` (C, H, W), of the dtype of the augmented picture (uint8 unless an augmentation
            changes it), and for training ``instances``. ``height`` and ``width`` remain those of the file.
        """
        record = copy.deepcopy(dataset_dict)
        image = utils.read_image(record["file_name"], format=self.image_format)
        utils.check_image_size(record, image)
        sem_seg = None
        if "sem_seg_file_name" in record:
            sem_seg = utils.read_image(record.pop("sem_seg_file_name"), "L").squeeze(2)

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        # Tensors travel between processes through shared memory, arrays would be pickled.
        record["image"] = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, aug_input.image.shape[:2])
        return record


_OPTIONAL_KEYS = (("segmentation", "use_instance_mask"), ("keypoints", "use_keypoint"))
