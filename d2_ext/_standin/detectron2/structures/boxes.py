"""Axis-aligned boxes: formats, the ``Boxes`` of an image, and how much two sets of them overlap."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from detectron2._missing import refuse
from detectron2.structures._rows import Rows
from torch import Tensor
from torchvision.ops import box_area, clip_boxes_to_image

__getattr__ = refuse(__name__, "matched_pairwise_iou")

RawBox = TypeVar("RawBox", list, tuple, np.ndarray, Tensor)


class BoxMode(IntEnum):
    """What the numbers of a box mean; the values are stored in data sets and must not change."""

    XYXY_ABS = 0  # left, top, right, bottom, in px
    XYWH_ABS = 1  # left, top, width, height, in px; COCO's format
    XYXY_REL = 2  # as shares of the image's size
    XYWH_REL = 3
    XYWHA_ABS = 4  # center, width, height in px; counter-clockwise angle in degrees

    @staticmethod
    def convert(box: RawBox, from_mode: BoxMode | int, to_mode: BoxMode | int) -> RawBox:
        """Express one box, a list or tuple of 4 or 5 numbers, or (..., K) rows of an array or tensor in another mode.

        Rotated boxes become the smallest upright boxes around them. Lists of floats are computed in float32. Gives a
        new object of the same type and dtype; ``box`` itself if the modes are equal.

        Raises:
            AssertionError: for relative modes, or a wrong number of values.
            NotImplementedError: if there is no such conversion.
        """
        if from_mode == to_mode:
            return box
        source, target = BoxMode(from_mode), BoxMode(to_mode)
        if {source, target} & {BoxMode.XYXY_REL, BoxMode.XYWH_REL}:
            raise AssertionError(f"{source!r} to {target!r}: multiply by the size of the image first.")
        if isinstance(box, (list, tuple)) and len(box) not in (4, 5):
            raise AssertionError(f"A box of 4 or 5 numbers was expected, not {box!r}.")
        rows = _in_mode(torch.as_tensor(box), source, target)
        if isinstance(box, Tensor):
            return rows
        return rows.numpy() if isinstance(box, np.ndarray) else type(box)(rows.tolist())


def _in_mode(rows: Tensor, source: BoxMode, target: BoxMode) -> Tensor:
    """(..., K) boxes of absolute modes in another mode, with their dtype; the input stays as it is."""
    match source, target:
        case (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) | (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            sign = 1 if target is BoxMode.XYXY_ABS else -1
            rows = rows.clone()
            rows[..., 2:4].add_(rows[..., :2], alpha=sign)
            return rows
        case (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS):
            corner, size = rows.double().split(2, dim=-1)
            return torch.cat([corner + size / 2, size, torch.zeros_like(size[..., :1])], dim=-1).to(rows.dtype)
        case (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS):
            if rows.shape[-1] != 5:
                raise AssertionError(f"Rotated boxes have 5 numbers, not {rows.shape[-1]}.")
            center, size, angle = rows.double().split([2, 2, 1], dim=-1)
            cos, sin = angle.deg2rad().cos().abs(), angle.deg2rad().sin().abs()
            half = (cos * size + sin * size.flip(-1)) / 2  # of the upright box around it
            return torch.cat([center - half, center + half], dim=-1).to(rows.dtype)
    raise NotImplementedError(f"Boxes cannot be converted from {source!r} to {target!r}.")


class Boxes(Rows):
    """N boxes as left, top, right, bottom, in px; ``tensor`` is (N, 4), always float32."""

    def __init__(self, tensor: Tensor | list | np.ndarray) -> None:
        """Wrap N rows of 4 numbers (else AssertionError), or nothing at all; memory is shared where it can be."""
        rows = torch.as_tensor(tensor, dtype=torch.float32)
        self.tensor = rows if rows.numel() else rows.reshape(0, 4)
        if self.tensor.shape[1:] != (4,):
            raise AssertionError(f"Boxes of shape (N, 4) were expected, not {tuple(rows.shape)}.")

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> Boxes:
        """All boxes of a list of ``Boxes``, in order; an empty list has none. AssertionError for anything else."""
        return cls([]) if boxes_list in ([], ()) else super().cat(boxes_list)

    def clone(self) -> Boxes:
        """A copy that shares no memory."""
        return Boxes(self.tensor.clone())

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def area(self) -> Tensor:
        """(N,) areas in px²."""
        return box_area(self.tensor)

    def get_centers(self) -> Tensor:
        """(N, 2) centers, x and y in px."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: whether both sides are longer than ``threshold`` px."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move what lies outside an image of ``box_size`` = (height, width) onto its border, by a new ``tensor``.

        AssertionError if a coordinate is not finite.
        """
        if not self.tensor.isfinite().all():
            raise AssertionError("Boxes with infinite or NaN coordinates cannot be clipped; the training may diverge.")
        self.tensor = clip_boxes_to_image(self.tensor, box_size)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor *= self.tensor.new_tensor([scale_x, scale_y, scale_x, scale_y])


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 0 where nothing is shared, be the whole 0 too."""
    return torch.where(part > 0, part / whole, 0.0)


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) areas in px² that N and M boxes have in common."""
    a, b = boxes1.tensor[:, None], boxes2.tensor
    width, height = (
        torch.minimum(a[..., k + 2], b[..., k + 2]).sub_(torch.maximum(a[..., k], b[..., k])).clamp_(min=0)
        for k in (0, 1)
    )
    return width * height


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersections over unions; 0, not NaN, between boxes without area."""
    shared = pairwise_intersection(boxes1, boxes2)
    return _share(shared, boxes1.area()[:, None] + boxes2.area() - shared)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) shares of the areas of the M boxes ``boxes2`` that lie in the N boxes ``boxes1``."""
    return _share(pairwise_intersection(boxes1, boxes2), boxes2.area())


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """(P, N, 4) distances in px of P points (x, y) from the left, top, right and bottom of N boxes.

    They are positive inside of a box.
    """
    inward = points.new_tensor([1.0, 1.0, -1.0, -1.0])
    return (points.repeat(1, 2)[:, None] - boxes.tensor) * inward
