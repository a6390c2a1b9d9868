"""Points of a feature pyramid, and boxes as distances from a point to the four sides.

Letters: L levels, R locations of all levels, M boxes. Locations are ordered by level (finest first), then row, then
column. Distances are (left, top, right, bottom), boxes XYXY, both px of the padded input unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointGrid:
    """The centers of all cells of a feature pyramid.

    Attributes:
        sizes: (height, width) of each level, in cells.
        strides: px per cell of each level.
        points: (R, 2) centers as (x, y), px.
        point_strides: (R,) stride of each point's level, px.
        point_levels: (R,) index of each point's level.
    """

    sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    points: Tensor
    point_strides: Tensor
    point_levels: Tensor

    @property
    def counts(self) -> list[int]:
        """The number of locations of each level."""
        return [height * width for height, width in self.sizes]

    @property
    def cells(self) -> Tensor:
        """(R, 4) the square of side stride around each point."""
        half = self.point_strides[:, None] / 2
        return torch.cat([self.points - half, self.points + half], dim=1)


def make_point_grid(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | str = "cpu"
) -> PointGrid:
    """Build the points (x * s + s // 2, y * s + s // 2) of every level.

    Args:
        sizes: (height, width) of each level, in cells.
        strides: px per cell of each level.
        device: where the tensors live.
    """
    points, point_strides, point_levels = [], [], []
    for level, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        xs = torch.arange(width, device=device, dtype=torch.float32) * stride + stride // 2
        ys = torch.arange(height, device=device, dtype=torch.float32) * stride + stride // 2
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack([grid_x, grid_y], dim=-1).reshape(-1, 2))  # (H * W, 2)
        point_strides.append(torch.full((height * width,), float(stride), device=device))
        point_levels.append(torch.full((height * width,), level, device=device, dtype=torch.long))
    return PointGrid(
        sizes=tuple((int(height), int(width)) for height, width in sizes),
        strides=tuple(int(stride) for stride in strides),
        points=torch.cat(points),
        point_strides=torch.cat(point_strides),
        point_levels=torch.cat(point_levels),
    )


def encode_ltrb(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances from points to the sides of boxes, negative where a point lies outside.

    Args:
        points: (..., 2) as (x, y).
        boxes: (..., 4) XYXY, same leading shape.

    Returns:
        (..., 4) left, top, right, bottom.

    Example:
        >>> encode_ltrb(torch.tensor([[10.0, 10.0]]), torch.tensor([[4.0, 8.0, 20.0, 30.0]]))
        tensor([[ 6.,  2., 10., 20.]])
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def decode_ltrb(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes XYXY (..., 4) from points (..., 2) and distances (..., 4); the inverse of :func:`encode_ltrb`."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def centerness(distances: Tensor) -> Tensor:
    """How central a point is in its box: sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b)) (Eq. 3, arXiv:1904.01355).

    Args:
        distances: (..., 4) of points inside their boxes, in any unit.

    Returns:
        (...) between 0 and 1.
    """
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratio_x = horizontal.amin(dim=-1) / horizontal.amax(dim=-1)
    ratio_y = vertical.amin(dim=-1) / vertical.amax(dim=-1)
    return (ratio_x * ratio_y).sqrt()
