"""Assign anchors to ground-truth boxes by an IoU threshold that each box sets itself (ATSS).

Paper: Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection,
arXiv:1912.02424, algorithm 1.
Checked against: the assigner of mmdet 2.24, as the CEASC code uses it.
Differs: a box with a single candidate in all gets it, where the original's standard deviation is not a number.

Letters: L levels, R anchors of all levels, M boxes, C candidates of a box.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.modeling.box_codec import encode_ltrb

import torch
from torch import Tensor

MIN_DISTANCE = 0.01  # px from a box's border that the centre of a positive anchor keeps
_CHUNK = 64  # boxes compared with all anchors at once: bounds the memory of an image with hundreds of boxes


@torch.no_grad()
def assign_atss(anchors: Tensor, counts: Sequence[int], boxes: Tensor, *, topk: int = 9) -> Tensor:
    """Find the box that each anchor learns.

    The candidates of a box are, on each level, the ``topk`` anchors whose centres are nearest to its centre. Positive
    are those whose IoU with the box is at least the mean plus the standard deviation over its candidates, and whose
    centre lies in it. An anchor that several boxes claim goes to the one that it overlaps most.

    Args:
        anchors: (R, 4) XYXY, level after level.
        counts: anchors of each level, their sum is R.
        boxes: (M, 4) XYXY in the same frame; M may be 0.
        topk: candidates per level; a level with fewer anchors gives them all.

    Returns:
        Number of the box of each anchor, int64 (R,), -1 where there is none.

    Example:
        >>> anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])
        >>> assign_atss(anchors, [3], torch.tensor([[7.0, 0, 17, 8]]))
        tensor([-1,  0, -1])
    """
    if len(boxes) == 0 or len(anchors) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    candidates = torch.cat([_nearest(anchors, counts, part, topk) for part in boxes.split(_CHUNK)], dim=1)  # (C, M)
    overlaps = _iou(anchors[candidates], boxes)
    spread = overlaps.std(dim=0) if len(overlaps) > 1 else 0.0
    inside = encode_ltrb(_centers(anchors)[candidates], boxes.expand(len(candidates), -1, -1)).amin(dim=-1)
    chosen = (overlaps >= overlaps.mean(dim=0) + spread) & (inside > MIN_DISTANCE)
    box = torch.arange(len(boxes), device=boxes.device).expand_as(candidates)
    return _settle(candidates[chosen], overlaps[chosen], box[chosen], len(anchors))


def _settle(anchor: Tensor, overlap: Tensor, box: Tensor, num_anchors: int) -> Tensor:
    """Give each anchor to the box of largest overlap, the first one of several: (R,), -1 for an unclaimed anchor.

    The claims are pairs of an anchor and a box, given with their IoU, each (Q,).
    """
    largest = overlap.new_zeros(num_anchors).scatter_reduce(0, anchor, overlap, reduce="amax")
    winner = overlap == largest[anchor]
    first = torch.full((num_anchors,), torch.iinfo(torch.int64).max, dtype=torch.int64, device=anchor.device)
    first = first.scatter_reduce(0, anchor[winner], box[winner], reduce="amin")
    claimed = torch.zeros(num_anchors, dtype=torch.bool, device=anchor.device).index_fill(0, anchor, True)
    return torch.where(claimed, first, -1)


def _nearest(anchors: Tensor, counts: Sequence[int], boxes: Tensor, topk: int) -> Tensor:
    """Numbers of the candidates of a few boxes, (C, m)."""
    centers, found, start = _centers(boxes), [], 0
    for points in _centers(anchors).split(list(counts)):
        distances = (points[:, None] - centers).square().sum(dim=-1).sqrt()  # (R of the level, m)
        found.append(distances.topk(min(topk, len(points)), dim=0, largest=False).indices + start)
        start += len(points)
    return torch.cat(found)


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """IoU of the anchors (C, M, 4) of each column with its box (M, 4): (C, M)."""
    overlap = (torch.minimum(anchors[..., 2:], boxes[..., 2:]) - torch.maximum(anchors[..., :2], boxes[..., :2])).clamp(
        min=0
    )
    inter = overlap.prod(dim=-1)
    union = (anchors[..., 2:] - anchors[..., :2]).prod(dim=-1) + (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1) - inter
    return inter / union.clamp(min=torch.finfo(torch.float32).eps)
