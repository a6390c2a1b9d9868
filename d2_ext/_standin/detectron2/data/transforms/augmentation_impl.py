"""Augmentations. All draw from numpy's global generator, in an order that is part of their behavior."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import Augmentation, _as_augmentation
from .transform import ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop", "RandomApply", "RandomBrightness", "RandomContrast", "RandomCrop", "RandomFlip",
    "RandomLighting", "RandomRotation", "RandomSaturation", "Resize", "ResizeScale", "ResizeShortestEdge",
]  # fmt: skip

# The fields of these dataclasses are the arguments, which Augmentation shows; two augmentations are never equal.
_augmentation = dataclass(repr=False, eq=False)


class RandomApply(Augmentation):
    """Applies an augmentation or a transform with the probability ``prob``."""

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5) -> None:
        assert 0.0 <= prob <= 1.0, f"The probability is {prob}. Expected 0 to 1."
        self.aug, self.prob = _as_augmentation(tfm_or_aug), prob

    def get_transform(self, *args: Any) -> Transform:
        """The transform of the inner augmentation, or none."""
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        """Apply the inner augmentation to the input, or do nothing."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


@_augmentation
class RandomFlip(Augmentation):
    """Mirrors with the probability ``prob``, in one of the two directions; ValueError for none or both."""

    prob: float = 0.5
    _: KW_ONLY
    horizontal: bool = True
    vertical: bool = False

    def __post_init__(self) -> None:
        if self.horizontal == self.vertical:
            raise ValueError(f"horizontal and vertical are both {self.vertical}. Expected one of them to be True.")

    def get_transform(self, image: np.ndarray) -> Transform:
        """A flip of the (H, W, ...) image, or nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(image.shape[1]) if self.horizontal else VFlipTransform(image.shape[0])


@_augmentation
class Resize(Augmentation):
    """Scales to ``shape``, (height, width) or the side of a square in px."""

    shape: int | Sequence[int]
    interp: int = Image.BILINEAR

    def __post_init__(self) -> None:
        self.shape = (self.shape, self.shape) if isinstance(self.shape, int) else tuple(self.shape)

    def get_transform(self, image: np.ndarray) -> Transform:
        """The scaling of the (H, W, ...) image."""
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


@_augmentation
class ResizeShortestEdge(Augmentation):
    """Scales so that the shorter edge gets a drawn length, or less where the longer one would exceed ``max_size``.

    The length is drawn from ``short_edge_length`` as ``sample_style`` says: "range", between its two numbers; "choice",
    one of its numbers. Length 0 leaves the image as it is.
    """

    short_edge_length: int | Sequence[int]
    max_size: int = sys.maxsize
    sample_style: str = "range"
    interp: int = Image.BILINEAR

    def __post_init__(self) -> None:
        assert self.sample_style in ("range", "choice"), f"sample_style is {self.sample_style!r}."
        self.is_range = self.sample_style == "range"
        if isinstance(self.short_edge_length, int):
            self.short_edge_length = (self.short_edge_length, self.short_edge_length)
        assert len(self.short_edge_length) == 2 or not self.is_range, (
            f"short_edge_length is {self.short_edge_length}. Expected the two ends of the range."
        )

    def get_transform(self, image: np.ndarray) -> Transform:
        """The scaling of the (H, W, ...) image."""
        size, length = image.shape[:2], self._draw_length()
        if length == 0:
            return NoOpTransform()
        return ResizeTransform(*size, *self.get_output_shape(*size, length, self.max_size), self.interp)

    def _draw_length(self) -> int:
        lengths = self.short_edge_length
        return np.random.randint(lengths[0], lengths[1] + 1) if self.is_range else np.random.choice(lengths)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """(height, width) px after scaling; see the class."""
        longer = float(short_edge_length) / min(oldh, oldw) * max(oldh, oldw)
        shrink = min(1.0, float(max_size) / longer)
        short, long = int(short_edge_length * shrink + 0.5), int(longer * shrink + 0.5)
        if oldh < oldw:
            return short, long
        return long, short


@_augmentation
class ResizeScale(Augmentation):
    """Scales to fit into the target times a factor drawn from ``min_scale`` to ``max_scale``; keeps proportions."""

    min_scale: float
    max_scale: float
    target_height: int
    target_width: int
    interp: int = Image.BILINEAR

    def get_transform(self, image: np.ndarray) -> Transform:
        """The scaling of the (H, W, ...) image."""
        h, w = image.shape[:2]
        factor = np.random.uniform(self.min_scale, self.max_scale)
        scale = min(self.target_height * factor / h, self.target_width * factor / w)
        return ResizeTransform(h, w, round(h * scale), round(w * scale), self.interp)


@_augmentation
class RandomRotation(Augmentation):
    """Rotates by a drawn angle; see :class:`RotationTransform`.

    ``angle`` in degrees and ``center``, as shares of width and height, are drawn as ``sample_style`` says: "range",
    between the two given; "choice", one of those given. One angle or one center stands for itself.
    """

    angle: float | Sequence[float]
    expand: bool = True
    center: Sequence[Any] | None = None
    sample_style: str = "range"
    interp: int | None = None

    def __post_init__(self) -> None:
        assert self.sample_style in ("range", "choice"), f"sample_style is {self.sample_style!r}."
        self.is_range = self.sample_style == "range"
        if isinstance(self.angle, (int, float)):
            self.angle = (self.angle, self.angle)
        if self.center is not None and isinstance(self.center[0], (int, float)):
            self.center = (self.center, self.center)

    def get_transform(self, image: np.ndarray) -> Transform:
        """The rotation of the (H, W, ...) image; none for full turns."""
        h, w = image.shape[:2]
        angle = self._draw(self.angle)
        center = None if self.center is None else np.multiply(self._draw(self.center), (w, h))
        return RotationTransform(h, w, angle, self.expand, center, self.interp) if angle % 360 else NoOpTransform()

    def _draw(self, choices: Sequence[Any]) -> Any:
        return np.random.uniform(*choices) if self.is_range else choices[np.random.randint(len(choices))]


@_augmentation
class FixedSizeCrop(Augmentation):
    """Crops to ``crop_size``, (height, width) px, at a drawn place; pads what is smaller, at the right and below."""

    crop_size: tuple[int, int]
    pad: bool = True
    pad_value: float = 128.0
    seg_pad_value: int = 255

    def get_transform(self, image: np.ndarray) -> TransformList:
        """The crop of the (H, W, ...) image, and the padding."""
        h, w = image.shape[:2]
        surplus = np.subtract((h, w), self.crop_size)
        top, left = np.round(surplus.clip(0) * np.random.uniform(0.0, 1.0)).astype(int)
        crop = CropTransform(left, top, self.crop_size[1], self.crop_size[0], w, h)
        if not self.pad:
            return TransformList([crop])
        below, right = (-surplus).clip(0)
        inner_h, inner_w = np.minimum((h, w), self.crop_size)
        return TransformList(
            [crop, PadTransform(0, 0, right, below, inner_w, inner_h, self.pad_value, self.seg_pad_value)]
        )


@_augmentation
class RandomCrop(Augmentation):
    """Crops at a drawn place to a size that ``crop_type`` reads from ``crop_size``, two numbers.

    "relative": shares of height and width. "relative_range": shares drawn between those and 1. "absolute": height and
    width in px. "absolute_range": each side drawn between the two, in px. Images that are smaller stay whole.
    """

    crop_type: str
    crop_size: Sequence[float]

    def __post_init__(self) -> None:
        assert self.crop_type in ("relative", "relative_range", "absolute", "absolute_range"), (
            f"crop_type is {self.crop_type!r}. Expected relative, relative_range, absolute or absolute_range."
        )

    def get_transform(self, image: np.ndarray) -> Transform:
        """The crop of the (H, W, ...) image: size, then row, then column are drawn."""
        crop = self.get_crop_size(image.shape[:2])
        room = np.subtract(image.shape[:2], crop)
        assert room.min() >= 0, f"The crop of {crop} px is larger than the image of shape {image.shape}."
        top, left = (np.random.randint(margin + 1) for margin in room.tolist())
        return CropTransform(left, top, *crop[::-1])

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) px of a crop from an image of that size."""
        kind, _, drawn = self.crop_type.partition("_")
        if kind == "relative":
            share = np.array(self.crop_size, dtype=np.float32 if drawn else np.float64)
            if drawn:
                share = share + np.random.rand(2) * (1 - share)
            sides = [int(side * part + 0.5) for side, part in zip(image_size, share)]
        elif drawn:
            least, most = self.crop_size
            assert least <= most, f"crop_size is {self.crop_size}. Expected the smaller number first."
            sides = [np.random.randint(min(side, least), min(side, most) + 1) for side in image_size]
        else:
            sides = [min(side, wanted) for side, wanted in zip(image_size, self.crop_size)]
        return sides[0], sides[1]


def _check_three_channels(image: np.ndarray) -> None:
    assert image.shape[-1] == 3, f"The image has shape {image.shape}. Expected three channels."


@_augmentation
class _RandomBlend(Augmentation):
    """Blends the image with a plain version of it by a weight drawn from ``intensity_min`` to ``intensity_max``.

    Weight 1 is the image itself, 0 the plain one; more than 1 exaggerates the difference.
    """

    intensity_min: float
    intensity_max: float
    _plain: ClassVar[Callable[[np.ndarray], Any]]

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend for the (H, W, ...) image."""
        return BlendTransform(type(self)._plain(image), *self._draw_weights())

    def _draw_weights(self) -> tuple[float, float]:
        own = np.random.uniform(self.intensity_min, self.intensity_max)
        return 1 - own, own


class RandomContrast(_RandomBlend):
    """Changes the contrast: the plain image is the mean."""

    _plain = np.mean


class RandomBrightness(_RandomBlend):
    """Changes the brightness: the plain image is black."""

    _plain = staticmethod(lambda image: 0)


class RandomSaturation(_RandomBlend):
    """Changes the saturation of RGB images: the plain image is the gray one."""

    @staticmethod
    def _plain(image: np.ndarray) -> np.ndarray:
        _check_three_channels(image)
        return image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis]


# Directions, as columns, and strengths in which colors of ImageNet's RGB images vary, from AlexNet's paper.
_COLOR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_COLOR_VARIANCES = np.array([0.2175, 0.0188, 0.0045])


@_augmentation
class RandomLighting(Augmentation):
    """Adds a color in which RGB images naturally vary, drawn with the standard deviation ``scale``."""

    scale: float

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend for the (H, W, 3) image."""
        _check_three_channels(image)
        strengths = np.random.normal(scale=self.scale, size=3)
        return BlendTransform(_COLOR_AXES @ (strengths * _COLOR_VARIANCES), 1.0, 1.0)
