"""Deterministic transforms beyond those of ``fvcore.transforms``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = ["ExtentTransform", "ResizeTransform", "RotationTransform", "ColorTransform", "PILColorTransform"]

_TORCH_MODE = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


def _through_pillow(image: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply an operation of Pillow to (H, W), (H, W, 1) or (H, W, 3 or 4) and keep the number of dimensions."""
    one_channel = image.ndim == 3 and image.shape[2] == 1
    result = np.asarray(operation(Image.fromarray(image[:, :, 0] if one_channel else image)))
    return result[:, :, None] if one_channel else result


class ExtentTransform(Transform):
    """Takes a rectangle out of the picture, which may reach beyond it, and scales it to a given size.

    Args:
        src_rect: (x0, y0, x1, y1) px of the input.
        output_size: (height, width) px.
        interp: Pillow's interpolation.
        fill: value of pixels from outside the picture.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.BILINEAR,
        fill: float = 0,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        height, width = self.output_size

        def extract(picture: Image.Image) -> Image.Image:
            return picture.transform(
                (width, height), Image.EXTENT, self.src_rect, resample=interp or self.interp, fill=self.fill
            )

        return _through_pillow(img, extract)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        scale = np.array([width / (x1 - x0), height / (y1 - y0)])
        center_in, center_out = np.array([x0 + x1, y0 + y1]) * 0.5, np.array([width, height]) * 0.5
        moved = coords.astype(np.float32)
        moved[:, :2] = (moved[:, :2] - center_in) * scale + center_out
        return moved

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)


class ResizeTransform(Transform):
    """Scales the picture to a given size.

    uint8 pictures go through Pillow, which averages when it shrinks (antialiasing); others through
    ``torch.nn.functional.interpolate`` without it.

    Args:
        h: height of the input.
        w: width of the input.
        new_h: height of the output.
        new_w: width of the output.
        interp: Pillow's interpolation; bilinear by default.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), f"expected an image of {(self.h, self.w)}, got {img.shape}"
        assert img.ndim <= 4, img.shape
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return _through_pillow(img, lambda picture: picture.resize((self.new_w, self.new_h), interp))
        return self._interpolate(img, _TORCH_MODE[interp])

    def _interpolate(self, img: np.ndarray, mode: str) -> np.ndarray:
        # torch takes no negative strides, as a BGR view of an RGB picture has them.
        flat = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1).permute(2, 0, 1)[None]
        resized = F.interpolate(
            flat, (self.new_h, self.new_w), mode=mode, align_corners=None if mode == "nearest" else False
        )
        return resized[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> ResizeTransform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Turns the picture counter-clockwise (needs OpenCV).

    Args:
        h: height of the input.
        w: width of the input.
        angle: degrees.
        expand: enlarge the output so that the whole turned picture fits, which then is centred in it.
        center: (x, y) px about which to turn, the middle of the picture by default; without effect if ``expand``.
        interp: OpenCV's interpolation, linear by default.
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
        image_center = np.array((w / 2, h / 2))
        center = image_center if center is None else center
        interp = cv2.INTER_LINEAR if interp is None else interp
        bound_w, bound_h = w, h
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            bound_w, bound_h = np.rint([h * sin + w * cos, h * cos + w * sin]).astype(int)
        self._set_attributes({k: v for k, v in locals().items() if k not in ("cv2", "cos", "sin")})
        self.rm_coords = self.create_rotation_matrix()
        # Coordinates count from the corner of the first pixel, OpenCV's warp from its centre.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """(2, 3) affine matrix from input to output px; ``offset`` is where the frame has its first pixel's corner."""
        import cv2

        matrix = cv2.getRotationMatrix2D((self.center[0] + offset, self.center[1] + offset), self.angle, 1)
        if self.expand:
            # The middle of the input has to land in the middle of the output.
            landed = matrix[:, :2] @ (self.image_center + offset) + matrix[:, 2]
            matrix[:, 2] += np.array([self.bound_w / 2, self.bound_h / 2]) + offset - landed
        return matrix

    def _turns(self, data: np.ndarray) -> bool:
        return len(data) > 0 and self.angle % 360 != 0

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        import cv2

        if not self._turns(img):
            return img
        assert img.shape[:2] == (self.h, self.w), f"expected an image of {(self.h, self.w)}, got {img.shape}"
        flags = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (int(self.bound_w), int(self.bound_h)), flags=flags)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2] if self._turns(coords) else coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        import cv2

        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> TransformList:
        """Turn back and cut the original size out of the middle; only if nothing was lost (``expand``)."""
        if not self.expand:
            raise NotImplementedError("a rotation that cut off the corners cannot be undone")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        crop = CropTransform((back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2, self.w, self.h)
        return TransformList([back, crop])


class ColorTransform(Transform):
    """Changes pixel values and leaves all geometry alone.

    Args:
        op: from an image array to an image array.
    """

    def __init__(self, op: Callable[[Any], Any]) -> None:
        if not callable(op):
            raise ValueError(f"op must be a function of an image, got {op!r}")
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> NoOpTransform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """As :class:`ColorTransform`, with an ``op`` from Pillow image to Pillow image."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(super().apply_image(Image.fromarray(img)))


def _flip_rotated_box(transform: HFlipTransform, boxes: np.ndarray) -> np.ndarray:
    """(N, 5) boxes (x center, y center, width, height, degrees counter-clockwise), mirrored in place."""
    boxes[:, 0] = transform.width - boxes[:, 0]
    boxes[:, 4] *= -1
    return boxes


def _resize_rotated_box(transform: ResizeTransform, boxes: np.ndarray) -> np.ndarray:
    """(N, 5) boxes scaled in place; a turned box becomes the rectangle on the scaled directions of its sides."""
    scale_x, scale_y = transform.new_w / transform.w, transform.new_h / transform.h
    angle = np.deg2rad(boxes[:, 4])
    cos, sin = np.cos(angle), np.sin(angle)
    boxes[:, 0] *= scale_x
    boxes[:, 1] *= scale_y
    boxes[:, 2] *= np.hypot(scale_x * cos, scale_y * sin)
    boxes[:, 3] *= np.hypot(scale_x * sin, scale_y * cos)
    boxes[:, 4] = np.rad2deg(np.arctan2(scale_x * sin, scale_y * cos))
    return boxes


HFlipTransform.register_type("rotated_box", _flip_rotated_box)
ResizeTransform.register_type("rotated_box", _resize_rotated_box)
NoOpTransform.register_type("rotated_box", lambda transform, boxes: boxes)
