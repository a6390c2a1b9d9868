"""Losses of boxes by their overlap, from torchvision."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - IoU + (distance of the centers / diagonal of the common bounding box)², arXiv:1911.08287.

    Of (N, 4) predictions, XYXY, whose sides must not be negative (AssertionError), and (N, 4) targets. ``reduction`` is
    "none" for (N,), "mean" (0 without boxes) or "sum"; ``eps`` is added to divisors.
    """
    return _checked(distance_box_iou_loss, boxes1, boxes2, reduction, eps)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """:func:`diou_loss` and a term for the difference of the aspect ratios, same paper."""
    return _checked(complete_box_iou_loss, boxes1, boxes2, reduction, eps)


def _checked(loss: Callable[..., Tensor], boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float) -> Tensor:
    if not (boxes1[..., 2:] >= boxes1[..., :2]).all():
        raise AssertionError("Predicted boxes must have right >= left and bottom >= top; some have not, or are NaN.")
    return loss(boxes1, boxes2, reduction, eps)
