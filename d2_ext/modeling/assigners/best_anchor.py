"""One-to-one assignment by anchors: each box gets the square anchor that overlaps it most.

The "anchor" rule in the comparison of DeFCN (arXiv:2012.03544, Table 1): one anchor per location, no threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.modeling.box_codec import PointGrid
from d2_ext.modeling.losses.iou import pairwise_iou

import torch
from torch import Tensor


def square_anchors(grid: PointGrid, sizes: Sequence[float]) -> Tensor:
    """Anchors (R, 4) XYXY, px: squares around the points, ``sizes[level]`` px wide."""
    half = torch.tensor(list(sizes), device=grid.points.device, dtype=torch.float32)[grid.point_levels, None] / 2
    return torch.cat([grid.points - half, grid.points + half], dim=1)


@torch.no_grad()
def assign_best_anchor(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Find the box that each anchor learns.

    Args:
        anchors: (R, 4) XYXY, px.
        boxes: (M, 4) XYXY, px; M may be 0.

    Returns:
        (R,) index of the box, -1 where there is none; where boxes collide the larger IoU is kept.
    """
    best = torch.full((len(anchors),), -torch.inf, device=anchors.device)
    matched = torch.full((len(anchors),), len(boxes), device=anchors.device, dtype=torch.long)
    if len(boxes):
        iou, anchor = pairwise_iou(boxes, anchors).max(dim=1)  # (M,)
        best.scatter_reduce_(0, anchor, iou, reduce="amax")
        winners = (iou == best[anchor]).nonzero()[:, 0]
        matched.scatter_reduce_(0, anchor[winners], winners, reduce="amin")
    return matched.masked_fill_(matched == len(boxes), -1)
