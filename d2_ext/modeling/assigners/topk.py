"""One-to-many assignments with a threshold per box: mean + standard deviation of its best candidates.

Papers: ATSS, arXiv:1912.02424 (candidates by distance, quality = IoU of an anchor); the auxiliary loss of DeFCN,
arXiv:2012.03544, section 3.4 (candidates and threshold by predicted quality).
Differs: levels with fewer locations than candidates give all they have, and no boxes give no positives.

Letters: R locations of all levels, M boxes, K classes.
"""

from __future__ import annotations

from d2_ext.modeling.assigners.best_anchor import square_anchors
from d2_ext.modeling.box_codec import PointGrid, decode_ltrb, encode_ltrb
from d2_ext.modeling.losses.iou import pairwise_iou

import torch
from torch import Tensor


@torch.no_grad()
def assign_aux(
    grid: PointGrid, boxes: Tensor, classes: Tensor, scores: Tensor, distances: Tensor, *, alpha: float, topk: int
) -> Tensor:
    """Find the boxes of the auxiliary loss, by quality score^(1 - alpha) * IoU^alpha.

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px; M may be 0.
        classes: (M,) in 0..K-1.
        scores: (R, K) class probabilities.
        distances: (R, 4) predicted left, top, right, bottom, px.
        alpha: exponent of the IoU.
        topk: candidates per level.

    Returns:
        (R,) index of the box, -1 where there is none.
    """
    iou = pairwise_iou(boxes, decode_ltrb(grid.points, distances))
    quality = scores.t()[classes] ** (1 - alpha) * iou**alpha  # (M, R)
    return assign_above_mean(grid, boxes, quality, quality, topk=topk)


@torch.no_grad()
def assign_atss(grid: PointGrid, boxes: Tensor, *, topk: int, anchor_scale: float) -> Tensor:
    """Find the box that each location learns, by the IoU of square anchors.

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px; M may be 0.
        topk: candidates per level, those nearest to the box's centre.
        anchor_scale: side of the anchors, in strides.

    Returns:
        (R,) index of the box, -1 where there is none.
    """
    anchors = square_anchors(grid, [anchor_scale * stride for stride in grid.strides])
    iou = pairwise_iou(boxes, anchors)
    nearness = -torch.cdist((boxes[:, :2] + boxes[:, 2:]) / 2, grid.points)
    return assign_above_mean(grid, boxes, nearness, iou, topk=topk)


def assign_above_mean(grid: PointGrid, boxes: Tensor, ranking: Tensor, quality: Tensor, *, topk: int) -> Tensor:
    """Take the candidates whose quality is at least the mean plus the standard deviation of their box's candidates.

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px.
        ranking: (M, R); the ``topk`` highest of each level are the candidates.
        quality: (M, R) what the threshold is about.
        topk: candidates per level.

    Returns:
        (R,) index of the box, -1 where there is none. Points off the box are no positives; where boxes collide the
        higher quality is kept, then the lower index.
    """
    num_locations = len(grid.points)
    if len(boxes) == 0:
        return torch.full((num_locations,), -1, device=boxes.device, dtype=torch.long)
    start, candidates = 0, []
    for count, level in zip(grid.counts, ranking.split(grid.counts, dim=1), strict=True):
        candidates.append(level.topk(min(topk, count), dim=1).indices + start)
        start += count
    location = torch.cat(candidates, dim=1)  # (M, C)
    values = quality.gather(1, location)
    # A single candidate has no standard deviation; the unbiased one of the papers' code otherwise.
    threshold = values.mean(dim=1) + (values.std(dim=1) if location.shape[1] > 1 else 0.0)
    inside = encode_ltrb(grid.points[location], boxes[:, None]).amin(dim=-1) > 0
    box, slot = (inside & (values >= threshold[:, None])).nonzero(as_tuple=True)
    location, values = location[box, slot], values[box, slot]

    best = values.new_full((num_locations,), -torch.inf).scatter_reduce_(0, location, values, reduce="amax")
    winners = values == best[location]
    matched = torch.full((num_locations,), len(boxes), device=boxes.device, dtype=torch.long)
    matched.scatter_reduce_(0, location[winners], box[winners], reduce="amin")
    return matched.masked_fill_(matched == len(boxes), -1)
