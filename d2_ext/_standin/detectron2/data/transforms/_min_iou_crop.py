"""Crop that depends on the boxes; public in ``augmentation_impl``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Boxes, pairwise_iou
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform

from .augmentation import Augmentation


class MinIoURandomCrop(Augmentation):
    """Crop whose IoU with every box is at least a drawn threshold (SSD, section 2.2); needs the input's boxes.

    Args:
        min_ious: thresholds to draw from, besides "no crop" and 0.
        min_crop_size: least side of the crop, relative to the picture.
        mode_trials: how many thresholds to try.
        crop_trials: how many crops to try for each.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        self.min_ious = min_ious
        self.sample_mode = (1, *min_ious, 0)  # 1: leave the picture whole
        self.min_crop_size = min_crop_size
        self.mode_trials = mode_trials
        self.crop_trials = crop_trials

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        if boxes is None:
            return NoOpTransform()
        for _ in range(self.mode_trials):
            self.mode = np.random.choice(self.sample_mode)
            if self.mode == 1:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                crop = self._draw_crop(*image.shape[:2], boxes.reshape(-1, 4))
                if crop is not None:
                    return crop
        # Possible only if "no crop" never came up, i.e. with very few trials.
        return NoOpTransform()

    def _draw_crop(self, h: int, w: int, boxes: np.ndarray) -> CropTransform | None:
        """One trial; None if the crop is too long or violates a box. Boxes (N, 4) XYXY px."""
        width = np.random.uniform(self.min_crop_size * w, w)
        height = np.random.uniform(self.min_crop_size * h, h)
        if not 0.5 <= height / width <= 2:
            return None
        left = np.random.uniform(w - width)
        top = np.random.uniform(h - height)
        patch = np.array([int(left), int(top), int(left + width), int(top + height)])
        if patch[2] == patch[0] or patch[3] == patch[1]:
            return None
        if len(boxes) > 0:
            overlaps = pairwise_iou(Boxes(patch.reshape(1, 4)), Boxes(boxes))
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((centers > patch[:2]) & (centers < patch[2:])).all(axis=1)
            if overlaps.min() < self.mode or not inside.any():
                return None
        return CropTransform(int(left), int(top), int(width), int(height))
