"""One-to-many assignments with a threshold that each box sets itself: mean + standard deviation of its best candidates.

Papers: Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection (ATSS),
arXiv:1912.02424, algorithm 1: candidates by distance, quality = IoU of an anchor; the auxiliary loss of DeFCN,
arXiv:2012.03544, section 3.4: candidates and threshold by predicted quality.
Checked against: the assigner of mmdet 2.24, as the CEASC code uses it; the authors' code of DeFCN.
Differs: levels with fewer positions than candidates give all they have; a box with a single candidate in all gets it,
where the originals' standard deviation is not a number; no boxes give no positives.

Letters: R positions (points or anchors) of all levels, M boxes, K classes, T candidates of a box.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.modeling.box_codec import PointGrid, decode_ltrb, encode_ltrb
from d2_ext.modeling.losses.iou import elementwise_iou, pairwise_iou

import torch
from torch import Tensor

MIN_DISTANCE = 0.01  # px from a box's border that the center of a positive anchor keeps (mmdet)
_CHUNK = 64  # boxes compared with all anchors at once: bounds the memory of an image with hundreds of boxes


@torch.no_grad()
def assign_atss(
    anchors: Tensor, counts: Sequence[int], boxes: Tensor, *, topk: int = 9, min_distance: float = MIN_DISTANCE
) -> Tensor:
    """Find the box that each anchor learns.

    The candidates of a box are, on each level, the ``topk`` anchors whose centers are nearest to its center. Positive
    are those whose IoU with the box is at least the mean plus the standard deviation over its candidates, and whose
    center lies in it. An anchor that several boxes claim goes to the one that it overlaps most.

    Args:
        anchors: (R, 4) XYXY, level after level.
        counts: anchors of each level, their sum is R.
        boxes: (M, 4) XYXY in the same frame; M may be 0.
        topk: candidates per level; a level with fewer anchors gives them all.
        min_distance: px from a box's border that the center of a positive anchor must be away, more than.

    Returns:
        Number of the box of each anchor, int64 (R,), -1 where there is none.

    Example:
        >>> anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])
        >>> assign_atss(anchors, [3], torch.tensor([[7.0, 0, 17, 8]]))
        tensor([-1,  0, -1])
    """
    if len(boxes) == 0 or len(anchors) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    chunks = []
    for part in boxes.split(_CHUNK):
        found, start, targets = [], 0, (part[:, :2] + part[:, 2:]) / 2
        for points in centers.split(list(counts)):
            distances = (points - targets[:, None]).square().sum(dim=-1).sqrt()  # (m, R of the level)
            found.append(distances.topk(min(topk, len(points)), dim=1, largest=False).indices + start)
            start += len(points)
        chunks.append(torch.cat(found, dim=1))
    candidates = torch.cat(chunks)  # (M, T)
    overlaps = elementwise_iou(anchors[candidates].flatten(0, 1), boxes.repeat_interleave(candidates.shape[1], dim=0))
    return _take_above_mean(candidates, overlaps.view_as(candidates), centers, boxes, min_distance)


@torch.no_grad()
def assign_aux(
    grid: PointGrid, boxes: Tensor, classes: Tensor, scores: Tensor, distances: Tensor, *, alpha: float, topk: int
) -> Tensor:
    """Find the boxes of the auxiliary loss of DeFCN, by quality score^(1 - alpha) * IoU^alpha.

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px; M may be 0.
        classes: (M,) in 0..K-1.
        scores: (R, K) class probabilities.
        distances: (R, 4) predicted left, top, right, bottom, px.
        alpha: exponent of the IoU.
        topk: candidates per level, those of highest quality.

    Returns:
        (R,) index of the box, -1 where there is none. Points off the box are no positives.
    """
    if len(boxes) == 0:
        return torch.full((len(grid.points),), -1, dtype=torch.int64, device=boxes.device)
    iou = pairwise_iou(boxes, decode_ltrb(grid.points, distances))
    quality = scores.t()[classes] ** (1 - alpha) * iou**alpha  # (M, R)
    start, found = 0, []
    for count, level in zip(grid.counts, quality.split(grid.counts, dim=1), strict=True):
        found.append(level.topk(min(topk, count), dim=1).indices + start)
        start += count
    candidates = torch.cat(found, dim=1)  # (M, T)
    return _take_above_mean(candidates, quality.gather(1, candidates), grid.points, boxes, 0.0)


def _take_above_mean(
    candidates: Tensor, quality: Tensor, centers: Tensor, boxes: Tensor, min_distance: float
) -> Tensor:
    """Take the candidates of at least mean + standard deviation; a contested one goes to the higher quality.

    Args:
        candidates: (M, T) numbers of positions.
        quality: (M, T) what the threshold is about.
        centers: (R, 2) xy of all positions.
        boxes: (M, 4) XYXY.
        min_distance: px that the center of a positive is inside its box, more than.

    Returns:
        (R,) index of the box, -1 where there is none; between equal qualities the lower index.
    """
    # A single candidate has no standard deviation; the unbiased one of the papers' code otherwise.
    spread = quality.std(dim=1) if quality.shape[1] > 1 else quality.new_zeros(len(boxes))
    inside = encode_ltrb(centers[candidates], boxes[:, None].expand(-1, candidates.shape[1], -1)).amin(dim=-1)
    chosen = (quality >= (quality.mean(dim=1) + spread)[:, None]) & (inside > min_distance)
    box, slot = chosen.nonzero().unbind(1)
    position, value = candidates[box, slot], quality[box, slot]
    best = value.new_full((len(centers),), -torch.inf).scatter_reduce_(0, position, value, reduce="amax")
    winner = value == best[position]
    matched = torch.full((len(centers),), len(boxes), dtype=torch.int64, device=boxes.device)
    matched.scatter_reduce_(0, position[winner], box[winner], reduce="amin")
    return matched.masked_fill_(matched == len(boxes), -1)
