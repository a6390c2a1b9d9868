"""Losses of box regression: distance IoU and complete IoU (arXiv:1911.08287, Eq. 7 and 10)."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - IoU + (distance of the centres / diagonal of the enclosing box)².

    Args:
        boxes1, boxes2: (N, 4) or (4,), XYXY.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``; the mean of nothing is 0.
        eps: keeps the quotients finite.
    """
    _check_order(boxes1)
    return distance_box_iou_loss(boxes1, boxes2, reduction=reduction, eps=eps)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """``diou_loss`` plus a term for the difference of the aspect ratios; arguments as there."""
    _check_order(boxes1)
    return complete_box_iou_loss(boxes1, boxes2, reduction=reduction, eps=eps)


def _check_order(boxes: Tensor) -> None:
    assert (boxes[..., 2:] >= boxes[..., :2]).all(), "bad box: right or bottom edge before left or top, or NaN"
