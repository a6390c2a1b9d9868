"""The augmentations, those of geometry here. Each draws from numpy's global generator, as its code reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from ._min_iou_crop import MinIoURandomCrop
from ._photometric import RandomBrightness, RandomContrast, RandomLighting, RandomSaturation
from .augmentation import Augmentation, _transform_to_aug
from .transform import ExtentTransform, ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomExtent",
    "RandomFlip",
    "RandomSaturation",
    "RandomLighting",
    "RandomRotation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
    "RandomCrop_CategoryAreaConstraint",
    "RandomResize",
    "MinIoURandomCrop",
]


class RandomApply(Augmentation):
    """Another augmentation or transform, with probability ``prob``."""

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5) -> None:
        assert 0.0 <= prob <= 1.0, f"prob must be in [0, 1], got {prob}"
        self.aug = _transform_to_aug(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Mirror in one direction with probability ``prob``.

    Raises:
        ValueError: both directions, or none, are asked for.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError(
                f"exactly one of horizontal and vertical must be set, got {horizontal} and {vertical}; "
                "use two RandomFlip for both"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(image.shape[1]) if self.horizontal else VFlipTransform(image.shape[0])


class Resize(Augmentation):
    """Scale to a fixed (height, width), or to a square if one number is given."""

    def __init__(self, shape: int | Sequence[int], interp: int = Image.BILINEAR) -> None:
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale so that the short side has a drawn length, unless the long side would exceed ``max_size``.

    Args:
        short_edge_length: px; a range [min, max], both included, or a list to choose from, or one number. 0 leaves
            the picture as it is.
        max_size: limit of the long side, px.
        sample_style: ``"range"`` or ``"choice"``.
        interp: Pillow's interpolation.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ) -> None:
        assert sample_style in ("range", "choice"), f"sample_style must be 'range' or 'choice', got {sample_style!r}"
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        assert not self.is_range or len(short_edge_length) == 2, f"a range has two ends, got {short_edge_length}"
        self._init(locals())

    @torch.jit.unused
    def get_transform(self, image: np.ndarray) -> Transform:
        size = self._draw_length()
        height_width = image.shape[:2]
        if not size:
            return NoOpTransform()
        target = self.get_output_shape(*height_width, size, self.max_size)
        return ResizeTransform(*height_width, *target, self.interp)

    def _draw_length(self) -> int:
        if not self.is_range:
            return np.random.choice(self.short_edge_length)
        shortest, longest = self.short_edge_length
        return np.random.randint(shortest, longest + 1)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Size after scaling, rounded half up.

        Example:
            >>> ResizeShortestEdge.get_output_shape(1080, 1920, 800, 1333)
            (750, 1333)
        """
        size = short_edge_length * 1.0
        scale = size / min(oldh, oldw)
        height, width = (size, scale * oldw) if oldh < oldw else (scale * oldh, size)
        longest = max(height, width)
        if longest > max_size:
            shrink = max_size * 1.0 / longest
            height, width = height * shrink, width * shrink
        return int(height + 0.5), int(width + 0.5)


class ResizeScale(Augmentation):
    """Scale to fit into a target that is itself scaled by a factor from [min_scale, max_scale].

    The first half of "large scale jittering"; :class:`FixedSizeCrop` is the second.

    Args:
        min_scale: smallest factor.
        max_scale: largest factor.
        target_height: px at factor 1.
        target_width: px at factor 1.
        interp: Pillow's interpolation.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ) -> None:
        self._init(locals())

    def _get_resize(self, image: np.ndarray, scale: float) -> Transform:
        h, w = image.shape[:2]
        factor = min(self.target_height * scale / h, self.target_width * scale / w)
        new_h, new_w = np.round(np.multiply((h, w), factor)).astype(int).tolist()
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._get_resize(image, np.random.uniform(self.min_scale, self.max_scale))


class RandomRotation(Augmentation):
    """Turn by a drawn angle (degrees counter-clockwise) about a drawn centre.

    Args:
        angle: [min, max], or angles to choose from, or one number.
        expand: see :class:`RotationTransform`.
        center: relative (x, y) in 0..1: [[min x, min y], [max x, max y]], or points to choose from, or one point.
        sample_style: ``"range"`` or ``"choice"``.
        interp: OpenCV's interpolation.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Any] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        assert sample_style in ("range", "choice"), f"sample_style must be 'range' or 'choice', got {sample_style!r}"
        self.is_range = sample_style == "range"
        angle = (angle,) * 2 if np.isscalar(angle) else angle
        is_one_point = center is not None and np.isscalar(center[0])
        center = (center,) * 2 if is_one_point else center
        del is_one_point
        self._init(locals())

    def _draw(self) -> tuple[float, Sequence[float] | None]:
        if not self.is_range:
            angle = np.random.choice(self.angle)
            return angle, None if self.center is None else self.center[np.random.choice(len(self.center))]
        angle = np.random.uniform(self.angle[0], self.angle[1])
        if self.center is None:
            return angle, None
        (x0, y0), (x1, y1) = self.center
        return angle, (np.random.uniform(x0, x1), np.random.uniform(y0, y1))

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        angle, center = self._draw()
        if angle % 360 == 0:
            return NoOpTransform()
        center_px = None if center is None else (w * center[0], h * center[1])
        return RotationTransform(h, w, angle, expand=self.expand, center=center_px, interp=self.interp)


class FixedSizeCrop(Augmentation):
    """Crop to a size at a random place; where the picture is smaller, pad it right and below.

    Args:
        crop_size: (height, width).
        pad: False to leave smaller pictures smaller.
        pad_value: of the picture.
        seg_pad_value: of the map of labels.
    """

    def __init__(
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ) -> None:
        self._init(locals())

    def _get_crop(self, image: np.ndarray) -> Transform:
        slack = np.maximum(np.subtract(image.shape[:2], self.crop_size), 0)
        # One number for both directions: the crop lies on the diagonal of the possible places.
        top, left = np.round(slack * np.random.uniform(0.0, 1.0)).astype(int)
        return CropTransform(left, top, self.crop_size[1], self.crop_size[0], image.shape[1], image.shape[0])

    def _get_pad(self, image: np.ndarray) -> Transform:
        lacking = np.maximum(np.subtract(self.crop_size, image.shape[:2]), 0)
        height, width = np.minimum(image.shape[:2], self.crop_size)
        return PadTransform(0, 0, lacking[1], lacking[0], width, height, self.pad_value, self.seg_pad_value)

    def get_transform(self, image: np.ndarray) -> TransformList:
        return TransformList([self._get_crop(image), *([self._get_pad(image)] if self.pad else [])])


class RandomCrop(Augmentation):
    """Cut out a rectangle at a random place.

    Args:
        crop_type: how ``crop_size`` (a, b) gives the size for a picture of H x W:

            - ``"relative"``: a*H x b*W;
            - ``"relative_range"``: the same with factors drawn from [a, 1] and [b, 1];
            - ``"absolute"``: a x b px, at most the picture;
            - ``"absolute_range"``: both sides drawn from [a, b] px, at most the picture.
        crop_size: see above.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        types = ("relative_range", "relative", "absolute", "absolute_range")
        assert crop_type in types, f"crop_type must be one of {types}, got {crop_type!r}"
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._place(*image.shape[:2])

    def _place(self, h: int, w: int) -> CropTransform:
        height, width = self.get_crop_size((h, w))
        top = np.random.randint(h - height + 1)
        left = np.random.randint(w - width + 1)
        return CropTransform(left, top, width, height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a crop, drawn for a picture of ``image_size`` (height, width)."""
        h, w = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], h), min(self.crop_size[1], w)
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            assert low <= high, f"crop_size must be (min, max), got {self.crop_size}"
            height = np.random.randint(min(h, low), min(h, high) + 1)
            return height, np.random.randint(min(w, low), min(w, high) + 1)
        share = self.crop_size
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)
            share = least + np.random.rand(2) * (1 - least)
        return int(h * share[0] + 0.5), int(w * share[1] + 0.5)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """As :class:`RandomCrop`, drawn up to ten times until no class fills more than a share of the label map.

    Args:
        crop_type: see :class:`RandomCrop`.
        crop_size: see :class:`RandomCrop`.
        single_category_max_area: the share; 1 takes the first crop.
        ignored_category: a label that does not count.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self._init(locals())

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(10):
            crop = self.crop_aug._place(*sem_seg.shape)
            labels, counts = np.unique(crop.apply_segmentation(sem_seg), return_counts=True)
            counts = counts[labels != self.ignored_category] if self.ignored_category is not None else counts
            if len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
        return crop


class RandomExtent(Augmentation):
    """Take a rectangle of drawn scale and place, which may reach beyond the picture (black there).

    Args:
        scale_range: (min, max) size of the rectangle, relative to the picture.
        shift_range: (x, y) largest distance between the centres, in widths and heights of the picture, times two.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        scale = np.random.uniform(self.scale_range[0], self.scale_range[1])
        shift_x = self.shift_range[0] * w * (np.random.rand() - 0.5)
        shift_y = self.shift_range[1] * h * (np.random.rand() - 0.5)
        x0, x1 = (side * 0.5 * w * scale + shift_x + 0.5 * w for side in (-1, 1))
        y0, y1 = (side * 0.5 * h * scale + shift_y + 0.5 * h for side in (-1, 1))
        return ExtentTransform((x0, y0, x1, y1), (int(y1 - y0), int(x1 - x0)))


class RandomResize(Augmentation):
    """Scale to a (height, width) drawn from a list."""

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = Image.BILINEAR) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        new_h, new_w = self.shape_list[np.random.randint(low=0, high=len(self.shape_list))]
        return ResizeTransform(*image.shape[:2], new_h, new_w, self.interp)
