"""IoU and GIoU losses of boxes and of distances (left, top, right, bottom).

Papers: UnitBox, arXiv:1608.01471 (-ln IoU); GIoU, arXiv:1902.09630.
All run in float32, whatever the input, and keep the graph for empty input.
"""

from __future__ import annotations

from d2_ext.errors import ConfigError, did_you_mean

import torch
from torch import Tensor
from torchvision.ops import box_iou

BOX_LOSSES = ("giou", "linear_iou", "iou")


def elementwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of pairs of boxes.

    Args:
        boxes1: (P, 4) XYXY; sides may be negative and then count as 0.
        boxes2: (P, 4) XYXY.

    Returns:
        (P,) in 0..1; 0 where the boxes do not overlap, also for two boxes without area.
    """
    inter, union, _ = _areas(boxes1, boxes2)
    return torch.where(inter > 0, inter / union, torch.zeros_like(inter))


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of all pairs of boxes (M, 4) and (R, 4) XYXY: (M, R) in 0..1, 0 between boxes without area."""
    return box_iou(boxes1.float(), boxes2.float()).nan_to_num(nan=0.0)


def box_giou_loss(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """1 - GIoU of pairs of boxes (P, 4) XYXY, (P,) in 0..2; denominators are at least float32's epsilon."""
    inter, union, hull = _areas(boxes1, boxes2)
    eps = torch.finfo(torch.float32).eps
    iou = inter / union.clamp(min=eps)
    return 1 - (iou - (hull - union) / hull.clamp(min=eps))


def _areas(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union and hull, each (P,)."""
    boxes1, boxes2 = boxes1.float(), boxes2.float()
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).clamp(min=0).prod(dim=1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).clamp(min=0).prod(dim=1)
    overlap = torch.minimum(boxes1[:, 2:], boxes2[:, 2:]) - torch.maximum(boxes1[:, :2], boxes2[:, :2])
    inter = overlap.clamp(min=0).prod(dim=1)
    hull = torch.maximum(boxes1[:, 2:], boxes2[:, 2:]) - torch.minimum(boxes1[:, :2], boxes2[:, :2])
    return inter, area1 + area2 - inter, hull.clamp(min=0).prod(dim=1)


def ltrb_iou_loss(pred: Tensor, target: Tensor, kind: str = "giou", *, smooth: bool = False) -> tuple[Tensor, Tensor]:
    """Loss between two boxes that are given as distances from one common point.

    Args:
        pred: (P, 4) left, top, right, bottom, not negative.
        target: (P, 4), with an area.
        kind: ``"giou"`` 1 - GIoU, ``"linear_iou"`` 1 - IoU, or ``"iou"`` -ln IoU.
        smooth: use (I + 1) / (U + 1) as IoU; the one is in the squared unit of the input, so that small boxes,
            or distances in strides, are judged more mildly.

    Returns:
        The loss (P,), and the (smoothed) IoU (P,).

    Raises:
        ConfigError: ``kind`` is none of the three.
    """
    pred, target = pred.float(), target.float()
    pred_area = (pred[:, :2] + pred[:, 2:]).prod(dim=1)
    target_area = (target[:, :2] + target[:, 2:]).prod(dim=1)
    near, far = torch.minimum(pred, target), torch.maximum(pred, target)
    inter = (near[:, :2] + near[:, 2:]).prod(dim=1)
    hull = (far[:, :2] + far[:, 2:]).prod(dim=1)
    union = pred_area + target_area - inter

    eps = torch.finfo(torch.float32).eps
    iou = (inter + 1) / (union + 1) if smooth else inter / union.clamp(min=eps)
    if kind == "giou":
        return 1 - (iou - (hull - union) / hull.clamp(min=eps)), iou
    if kind == "linear_iou":
        return 1 - iou, iou
    if kind == "iou":
        return -iou.clamp(min=eps).log(), iou
    raise ConfigError(f"BOX_LOSS: no box loss {kind!r}. {did_you_mean(kind, BOX_LOSSES)}")
