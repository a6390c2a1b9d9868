"""Transforms that fvcore has not: Pillow's scaling and cutting, rotation, functions of colors.

Images are (H, W) or (H, W, C) arrays; coordinates are (N, 2) arrays of x, y in px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import NoOpTransform, ScaleTransform, Transform
from PIL import Image

__all__ = ["ColorTransform", "ExtentTransform", "PILColorTransform", "ResizeTransform", "RotationTransform"]

_TORCH_MODES = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


def _with_pillow(img: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Do with an array what Pillow does with an image; a channel axis of one stays."""
    single = img.ndim == 3 and img.shape[2] == 1
    done = np.asarray(operation(Image.fromarray(img[:, :, 0] if single else img)))
    return done[:, :, None] if single else done


def _check_size(img: np.ndarray, expected: tuple[int, int]) -> None:
    assert img.shape[:2] == expected, f"The image has shape {img.shape}. Expected (height, width) {expected}."


class ExtentTransform(Transform):
    """Cuts ``src_rect``, (x0, y0, x1, y1) px, out and scales it to ``output_size``, (height, width) px.

    ``interp`` is one of Pillow's, for labels too; ``fill`` is the value of what lies beyond the image.
    """

    def __init__(
        self, src_rect: Sequence[float], output_size: tuple[int, int], interp: int = Image.BILINEAR, fill: float = 0
    ) -> None:
        super().__init__()
        self.src_rect, self.output_size, self.interp, self.fill = src_rect, output_size, interp, fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Cut and scale, with another interpolation if one is given."""
        size, how = self.output_size[::-1], {"resample": interp or self.interp, "fill": self.fill}
        return _with_pillow(img, lambda image: image.transform(size, Image.EXTENT, self.src_rect, **how))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move coordinates from the image to the result; returns float32."""
        start, end = np.float32(self.src_rect).reshape(2, 2)
        return (coords.astype(np.float32) - start) * (np.float32(self.output_size[::-1]) / (end - start))


class ResizeTransform(ScaleTransform):
    """Scales from (h, w) to (new_h, new_w) px.

    uint8 goes through Pillow, which averages what it makes smaller; other types go through torch, which samples.
    ``interp`` is one of Pillow's, bilinear if None; torch knows nearest, bilinear and bicubic.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__(h, w, new_h, new_w, Image.BILINEAR if interp is None else interp)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Scale an image, with another interpolation if one is given; AssertionError if its size is not (h, w)."""
        _check_size(img, (self.h, self.w))
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return _with_pillow(img, lambda image: image.resize((self.new_w, self.new_h), interp))
        return super().apply_image(img, _TORCH_MODES[interp]).astype(img.dtype, copy=False)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Scale labels without mixing them."""
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> ResizeTransform:
        """The transform that scales back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotates images of (h, w) px counter-clockwise by ``angle`` degrees. Needs OpenCV.

    With ``expand`` the canvas grows so that nothing is cut off; otherwise ``center``, (x, y) px, stays where it is, or
    the middle of the image. ``interp`` is one of OpenCV's, linear if None.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        import cv2

        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.image_center = np.array([w / 2, h / 2])
        self.center = self.image_center if center is None else center
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        self.bound_w, self.bound_h = np.rint(np.abs(self._turn()) @ [w, h]).astype(int) if expand else (w, h)
        self.rm_coords = self.create_rotation_matrix()
        self.rm_image = self.create_rotation_matrix(offset=-0.5)  # pixel i covers i to i + 1 of the coordinates

    def _turn(self) -> np.ndarray:
        """(2, 2), the rotation without translation; y points down."""
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        return np.array([[cos, sin], [-sin, cos]])

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """(2, 3) matrix for homogeneous coordinates that count from ``offset`` in the upper left corner."""
        fixed = np.add(self.image_center if self.expand else self.center, offset)
        start = np.float32(fixed).astype(float)  # the precision of OpenCV's function for this
        end = np.array([self.bound_w, self.bound_h]) / 2 + offset if self.expand else start
        return np.column_stack([self._turn(), end - self._turn() @ start])

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Rotate an image, filling with 0; AssertionError if its size is not (h, w)."""
        return self._warp(img, self.interp if interp is None else interp)

    def _warp(self, img: np.ndarray, interp: int) -> np.ndarray:
        import cv2

        if self._is_nothing(img):
            return img
        _check_size(img, (self.h, self.w))
        return cv2.warpAffine(img, self.rm_image, (int(self.bound_w), int(self.bound_h)), flags=interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate coordinates; returns float64."""
        if self._is_nothing(coords):
            return coords
        x, y = np.hsplit(np.asarray(coords, dtype=float), 2)
        return x * self.rm_coords[:, 0] + y * self.rm_coords[:, 1] + self.rm_coords[:, 2]

    def _is_nothing(self, array: np.ndarray) -> bool:
        return len(array) == 0 or self.angle % 360 == 0

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Rotate labels without mixing them."""
        import cv2

        return self._warp(segmentation, cv2.INTER_NEAREST)


class ColorTransform(Transform):
    """Changes colors by ``op``, a function of an image, and leaves coordinates and labels as they are."""

    def __init__(self, op: Callable[[Any], Any]) -> None:
        if not callable(op):
            raise ValueError(f"op is {op!r}. Expected a function of an image.")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    apply_segmentation = apply_coords

    def inverse(self) -> NoOpTransform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """A color transform by a function of Pillow images, such as ``PIL.ImageOps.autocontrast``."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return _with_pillow(img, self.op)
