"""Axis-aligned boxes and their overlaps.

Letters: N, M numbers of boxes. Boxes are XYXY in px unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum, unique
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

RawBox = TypeVar("RawBox", list, tuple, np.ndarray, Tensor)


@unique
class BoxMode(IntEnum):
    """Layout of the numbers of a box; equal to its integer, so it can be stored in JSON."""

    XYXY_ABS = 0  # left, top, right, bottom in px
    XYWH_ABS = 1  # left, top, width, height in px
    XYXY_REL = 2  # in [0, 1]; no conversion exists
    XYWH_REL = 3  # in [0, 1]; no conversion exists
    XYWHA_ABS = 4  # centre x, centre y, width, height in px, angle in degrees counter-clockwise

    @staticmethod
    def convert(box: RawBox, from_mode: BoxMode | int, to_mode: BoxMode | int) -> RawBox:
        """Convert one box (list or tuple of 4 or 5 numbers) or many (array or tensor (N, 4 or 5)).

        Returns:
            The same type and dtype as ``box``; ``box`` itself if the modes are equal.

        Raises:
            NotImplementedError: for a pair of modes without conversion.
        """
        if from_mode == to_mode:
            return box
        is_single = isinstance(box, (list, tuple))
        if is_single:
            assert len(box) in (4, 5), f"A box has 4 or 5 numbers, not {len(box)}: {box}."
            rows = torch.tensor(box)[None]
        else:
            rows = torch.from_numpy(np.array(box)) if isinstance(box, np.ndarray) else box.clone()
        relative = {BoxMode.XYXY_REL, BoxMode.XYWH_REL} & {from_mode, to_mode}
        assert not relative, "Relative box modes cannot be converted."
        rows = _convert_rows(rows, BoxMode(from_mode), BoxMode(to_mode))
        if is_single:
            return type(box)(rows.flatten().tolist())
        return rows.numpy() if isinstance(box, np.ndarray) else rows


def _convert_rows(rows: Tensor, from_mode: BoxMode, to_mode: BoxMode) -> Tensor:
    """Convert a tensor that may be overwritten."""
    pair = (from_mode, to_mode)
    if pair == (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        rows[:, 2:4] += rows[:, 0:2]
        return rows
    if pair == (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        rows[:, 2:4] -= rows[:, 0:2]
        return rows
    if pair == (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS):
        exact = rows.double()
        exact[:, 0:2] += exact[:, 2:4] / 2
        return torch.cat([exact, exact.new_zeros(len(exact), 1)], dim=1).to(rows.dtype)
    if pair == (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS):
        assert rows.shape[-1] == 5, f"A rotated box has 5 numbers, not {rows.shape[-1]}."
        return _enclosing_xyxy(rows.double()).to(rows.dtype)
    raise NotImplementedError(f"There is no conversion from {from_mode!r} to {to_mode!r}.")


def _enclosing_xyxy(rotated: Tensor) -> Tensor:
    """Smallest upright boxes (N, 4) around rotated ones (N, 5)."""
    x, y, w, h, angle = rotated.unbind(dim=1)
    radians = angle * math.pi / 180.0
    cos, sin = radians.cos().abs(), radians.sin().abs()
    width, height = cos * w + sin * h, cos * h + sin * w
    left, top = x - width / 2, y - height / 2
    return torch.stack([left, top, left + width, top + height], dim=1)


class Boxes:
    """N boxes in one float32 tensor.

    Attributes:
        tensor: (N, 4), XYXY in px.
    """

    def __init__(self, tensor: Tensor | list | np.ndarray) -> None:
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.float32)
        else:
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device="cpu")
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.size(1) == 4, (  # noqa: PT018
            f"Boxes need a tensor (N, 4), not {tuple(tensor.shape)}."
        )
        self.tensor = tensor

    def clone(self) -> Boxes:
        """Boxes with a tensor of their own."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        """Boxes on another device; the dtype stays float32."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """Areas (N,) in px²."""
        box = self.tensor
        return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move all corners into [0, width] x [0, height], in place (``tensor`` becomes a new one).

        Args:
            box_size: (height, width).

        Raises:
            AssertionError: if a coordinate is infinite or NaN.
        """
        assert torch.isfinite(self.tensor).all(), "Only finite boxes can be clipped; a coordinate is infinite or NaN."
        height, width = box_size
        x1, y1, x2, y2 = self.tensor.unbind(dim=1)
        self.tensor = torch.stack(
            (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1
        )

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Mask (N,) of the boxes whose two sides are both longer than ``threshold`` px."""
        box = self.tensor
        return ((box[:, 2] - box[:, 0]) > threshold) & ((box[:, 3] - box[:, 1]) > threshold)

    def __getitem__(self, item: Any) -> Boxes:
        """Boxes at an integer (one box), slice, index tensor or mask; they may share memory with these."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        rows = self.tensor[item]
        assert rows.dim() == 2, f"Boxes cannot be indexed with {item}: it gives no matrix."
        return Boxes(rows)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Mask (N,) of the boxes that stay within a frame, enlarged on all sides.

        Args:
            box_size: (height, width) of the frame in px.
            boundary_threshold: enlargement in px.
        """
        height, width = box_size
        x1, y1, x2, y2 = self.tensor.unbind(dim=-1)
        low, right, bottom = -boundary_threshold, width + boundary_threshold, height + boundary_threshold
        return (x1 >= low) & (y1 >= low) & (x2 < right) & (y2 < bottom)

    def get_centers(self) -> Tensor:
        """Centres (N, 2), x and y in px."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list[Boxes] | tuple[Boxes, ...]) -> Boxes:
        """All boxes of the list, in a tensor that shares no memory with theirs; no boxes for an empty list."""
        assert isinstance(boxes_list, (list, tuple)), f"Boxes.cat takes a list, not {type(boxes_list).__name__}."
        if not boxes_list:
            return cls(torch.empty(0))
        assert all(isinstance(boxes, Boxes) for boxes in boxes_list), "Boxes.cat takes a list of Boxes."
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        """Device of the tensor."""
        return self.tensor.device

    def __iter__(self) -> Iterator[Tensor]:
        """Each box as a tensor (4,)."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Areas (N, M) in px² that each box of the first N shares with each of the second M."""
    a, b = boxes1.tensor[:, None], boxes2.tensor
    sides = torch.min(a[..., 2:], b[:, 2:]) - torch.max(a[..., :2], b[:, :2])  # (N, M, 2)
    return sides.clamp_(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union (N, M), in [0, 1]; 0 where two boxes share nothing, also if both are empty."""
    inter = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - inter
    return torch.where(inter > 0, inter / union, inter.new_zeros(1))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over the area of the second box (N, M), in [0, 1]."""
    inter = pairwise_intersection(boxes1, boxes2)
    return torch.where(inter > 0, inter / boxes2.area(), inter.new_zeros(1))


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """Distances from N points (N, 2) to the left, top, right and bottom edges of M boxes.

    Returns:
        (N, M, 4) in px, all positive where the point lies inside the box.
    """
    xy = points[:, None]  # (N, 1, 2)
    return torch.cat([xy - boxes.tensor[:, :2], boxes.tensor[:, 2:] - xy], dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union (N,) of the i-th box of one list with the i-th of the other; NaN if both are empty."""
    assert len(boxes1) == len(boxes2), f"The lists must be equally long, not {len(boxes1)} and {len(boxes2)}."
    a, b = boxes1.tensor, boxes2.tensor
    sides = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0)
    inter = sides[:, 0] * sides[:, 1]
    return inter / (boxes1.area() + boxes2.area() - inter)
