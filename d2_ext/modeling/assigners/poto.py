"""Prediction-aware one-to-one assignment (POTO): each box gets the one location that predicts it best.

Paper: End-to-End Object Detection with Fully Convolutional Network, arXiv:2012.03544, section 3.2.
Checked against: the matching of ``scipy.optimize.linear_sum_assignment`` on the whole (M, R) quality matrix.
Differs: qualities are computed only where the spatial prior allows a location, and the matching is solved on those
columns; both leave the result as it is.

Letters: R locations of all levels, M boxes, K classes, Q pairs of a box and a location that it may take.
"""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.modeling.assigners.candidates import candidate_pairs
from d2_ext.modeling.assigners.matching import match_one_to_one
from d2_ext.modeling.box_codec import PointGrid, decode_ltrb
from d2_ext.modeling.losses.focal import sigmoid_focal_loss
from d2_ext.modeling.losses.iou import box_giou_loss, elementwise_iou

import torch
from torch import Tensor

INFEASIBLE_QUALITY = -1.0  # below 0, the quality of an allowed location without overlap
INFEASIBLE_COST = 1e8


@dataclass(frozen=True)
class CandidateQuality:
    """How well the allowed locations fit the boxes.

    Attributes:
        box: (Q,) index of the box.
        location: (Q,) index of the location.
        quality: (Q,) higher is better.
        infeasible: the quality of all pairs that are not listed.
    """

    box: Tensor
    location: Tensor
    quality: Tensor
    infeasible: float


@torch.no_grad()
def poto_quality(
    grid: PointGrid,
    boxes: Tensor,
    classes: Tensor,
    logits: Tensor,
    filter_logits: Tensor | None,
    distances: Tensor,
    *,
    alpha: float,
    radius: float,
) -> CandidateQuality:
    """Quality score^(1 - alpha) * IoU^alpha of every allowed pair (Eq. 2).

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px.
        classes: (M,) in 0..K-1.
        logits: (R, K) classification logits.
        filter_logits: (R, 1), multiplied as probabilities; None means 1.
        distances: (R, 4) predicted left, top, right, bottom, px.
        alpha: exponent of the IoU.
        radius: half side of the square of candidates around a box's center, in strides; 0 = the whole box.
    """
    box, location = candidate_pairs(grid, boxes, radius)
    score = logits[location, classes[box]].float().sigmoid()
    if filter_logits is not None:
        score = score * filter_logits[location, 0].float().sigmoid()
    iou = elementwise_iou(decode_ltrb(grid.points[location], distances[location]), boxes[box])
    quality = score ** (1 - alpha) * iou**alpha
    return CandidateQuality(box, location, _finite(quality), INFEASIBLE_QUALITY)


@torch.no_grad()
def foreground_loss_quality(
    grid: PointGrid,
    boxes: Tensor,
    classes: Tensor,
    logits: Tensor,
    distances: Tensor,
    *,
    radius: float,
    box_loss_weight: float,
    focal_alpha: float,
    focal_gamma: float,
) -> CandidateQuality:
    """Negative foreground loss, focal over all classes + weight * (1 - GIoU), of every allowed pair.

    Args:
        logits: (R, K) classification logits.
        box_loss_weight: weight of the box term.
        focal_alpha: weight of the positive class in the focal loss.
        focal_gamma: its exponent.
        grid: see :func:`poto_quality`.
        boxes: see there.
        classes: see there.
        distances: see there.
        radius: see there.
    """
    box, location = candidate_pairs(grid, boxes, radius)
    cost = sigmoid_focal_loss(logits[location], classes[box], alpha=focal_alpha, gamma=focal_gamma, reduction="rows")
    predicted = decode_ltrb(grid.points[location], distances[location])
    cost = cost + box_loss_weight * box_giou_loss(predicted, boxes[box])
    return CandidateQuality(box, location, _finite(-cost), -INFEASIBLE_COST)


def _finite(quality: Tensor) -> Tensor:
    """Let diverged predictions (NaN) lose every comparison; the trainer's check of the loss reports them."""
    return quality.nan_to_num(nan=0.0, posinf=0.0, neginf=-INFEASIBLE_COST)


@torch.no_grad()
def assign_one_to_one(candidates: CandidateQuality, num_boxes: int, num_locations: int) -> Tensor:
    """Match every box with one location so that the summed quality is largest (Eq. 3).

    A box without an allowed location still gets one, the first that is free, as in the paper's code.

    Args:
        candidates: qualities of the allowed pairs.
        num_boxes: M.
        num_locations: R.

    Returns:
        (R,) index of the box, -1 where there is none; every box occurs exactly once (if M <= R).
    """
    matched = torch.full((num_locations,), -1, device=candidates.box.device, dtype=torch.long)
    if num_boxes == 0:
        return matched
    # 1. Columns that any optimum may use: the allowed ones, and enough first ones for boxes that find no allowed one.
    allowed = torch.zeros(num_locations, device=matched.device, dtype=torch.bool)
    allowed[candidates.location] = True
    allowed[: 3 * num_boxes] = True
    columns = allowed.nonzero()[:, 0]
    quality = candidates.quality.new_full((num_boxes, len(columns)), candidates.infeasible)
    quality[candidates.box, allowed.long().cumsum(dim=0)[candidates.location] - 1] = candidates.quality

    # 2. The matching on these columns, and back to locations.
    column = match_one_to_one(quality).to(matched.device)
    served = (column >= 0).nonzero()[:, 0]  # all boxes, unless there are more of them than locations
    matched[columns[column[served]]] = served
    return matched


@torch.no_grad()
def assign_argmax(candidates: CandidateQuality, num_boxes: int, num_locations: int) -> Tensor:
    """Give every box its best location; where boxes collide the best quality wins and the others get none.

    Args:
        candidates: qualities of the allowed pairs.
        num_boxes: M.
        num_locations: R.

    Returns:
        (R,) index of the box, -1 where there is none.
    """
    box, location, quality = candidates.box, candidates.location, candidates.quality
    # 1. The best location of each box.
    best = quality.new_full((num_boxes,), -torch.inf).scatter_reduce_(0, box, quality, reduce="amax")
    top = (quality == best[box]).nonzero()[:, 0]
    # Pairs ascend by box, then location: the first pair of a box is its lowest best location.
    first = torch.full((num_boxes,), len(box), device=box.device).scatter_reduce_(0, box[top], top, reduce="amin")
    top = first[first < len(box)]

    # 2. The best box of each contested location.
    box, location, quality = box[top], location[top], quality[top]
    best = quality.new_full((num_locations,), -torch.inf).scatter_reduce_(0, location, quality, reduce="amax")
    winners = quality == best[location]
    matched = torch.full((num_locations,), num_boxes, device=box.device, dtype=torch.long)
    matched.scatter_reduce_(0, location[winners], box[winners], reduce="amin")
    return matched.masked_fill_(matched == num_boxes, -1)
