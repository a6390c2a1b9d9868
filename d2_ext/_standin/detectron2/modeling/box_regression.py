"""Boxes relative to anchors, and the loss of predicting them.

Letters: N boxes; R anchors of all levels. Boxes are XYXY in px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from detectron2._missing import refuse
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

__all__ = ["Box2BoxTransform", "Box2BoxTransformLinear"]

# A predicted box is at most this much (its logarithm) wider or higher than its anchor: 1000 px from 16 px.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)

__getattr__ = refuse(__name__, ["Box2BoxTransformRotated"])


class Box2BoxTransform:
    """Shift of the centre in box sizes, and logarithm of the scale (arXiv:1311.2524, App. C).

    ``dx, dy = (centre - source centre) / source size``, ``dw, dh = log(size / source size)``, times the weights.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        """Set the factors of dx, dy, dw, dh and the upper bound of dw and dh when they are applied."""
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Deltas (N, 4) that turn the sources (N, 4) into the targets (N, 4)."""
        _check_tensors(src_boxes, target_boxes)
        src_centers, src_sizes = _centers_sizes(src_boxes)
        centers, sizes = _centers_sizes(target_boxes)
        wx, wy, ww, wh = self.weights
        shift, ratio = centers - src_centers, sizes / src_sizes
        dx = wx * shift[:, 0] / src_sizes[:, 0]
        dy = wy * shift[:, 1] / src_sizes[:, 1]
        deltas = torch.stack((dx, dy, ww * ratio[:, 0].log(), wh * ratio[:, 1].log()), dim=1)
        assert (src_sizes[:, 0] > 0).all().item(), "A source box has no width, so deltas from it do not exist."
        return deltas

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply k deltas to each box.

        Args:
            deltas: (N, k * 4), of any float dtype.
            boxes: (N, 4).

        Returns:
            (N, k * 4), float32.
        """
        deltas = deltas.float()
        centers, sizes = _centers_sizes(boxes.to(deltas.dtype))
        deltas_k = deltas.unflatten(1, (-1, 4))  # (N, k, 4), also for N = 0
        wx, wy, ww, wh = self.weights
        shift = torch.stack((deltas_k[..., 0] / wx, deltas_k[..., 1] / wy), dim=-1)
        log_scale = torch.stack((deltas_k[..., 2] / ww, deltas_k[..., 3] / wh), dim=-1).clamp(max=self.scale_clamp)
        new_centers = shift * sizes[:, None] + centers[:, None]
        half_sizes = 0.5 * (log_scale.exp() * sizes[:, None])
        return torch.cat((new_centers - half_sizes, new_centers + half_sizes), dim=-1).flatten(1)


class Box2BoxTransformLinear:
    """Distances from the centre of the (square) source to the four sides of the target (arXiv:2006.09214)."""

    def __init__(self, normalize_by_size: bool = True) -> None:
        """Choose whether distances count in sizes of the source (the stride, for FCOS) or in px."""
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Distances (N, 4) to left, top, right, bottom; positive if the source's centre lies in the target."""
        _check_tensors(src_boxes, target_boxes)
        centers = 0.5 * (src_boxes[:, :2] + src_boxes[:, 2:])
        deltas = torch.cat((centers - target_boxes[:, :2], target_boxes[:, 2:] - centers), dim=1)
        return deltas / self._unit(src_boxes) if self.normalize_by_size else deltas

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (N, k * 4) at the distances (N, k * 4) from the centres of ``boxes`` (N, 4).

        Negative distances count as 0, so the result is never inside out.
        """
        distances = F.relu(deltas)
        boxes = boxes.to(deltas.dtype)
        centers = (0.5 * (boxes[:, :2] + boxes[:, 2:]))[:, None]  # (N, 1, 2)
        distances = distances.unflatten(1, (-1, 4))
        if self.normalize_by_size:
            distances = distances * self._unit(boxes)[:, None]
        return torch.cat((centers - distances[..., :2], centers + distances[..., 2:]), dim=-1).flatten(1)

    @staticmethod
    def _unit(boxes: Tensor) -> Tensor:
        return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)  # (N, 4): width, height, width, height


def _centers_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sizes = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * sizes, sizes


def _check_tensors(*boxes: Tensor) -> None:
    for b in boxes:
        assert isinstance(b, Tensor), f"Boxes must be given as a tensor, not {type(b).__name__}."


def _giou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str) -> Tensor:
    assert (boxes1[..., 2:] >= boxes1[..., :2]).all(), "bad box: right or bottom edge before left or top, or NaN"
    return generalized_box_iou_loss(boxes1, boxes2, reduction=reduction)


_BOX_LOSSES: dict[str, Callable[..., Tensor]] = {"giou": _giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def _dense_box_regression_loss(
    anchors: Sequence[Boxes] | Sequence[Tensor],
    box2box_transform: Box2BoxTransform | Box2BoxTransformLinear,
    pred_anchor_deltas: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    fg_mask: Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the box losses of the foreground anchors.

    Args:
        anchors: of each level, (H * W * A, 4).
        box2box_transform: what the predictions mean.
        pred_anchor_deltas: of each level, (number of pictures, H * W * A, 4).
        gt_boxes: of each picture, (R, 4); read at the foreground only.
        fg_mask: (number of pictures, R), bool.
        box_reg_loss_type: ``"smooth_l1"`` of the deltas, or ``"giou"``, ``"diou"``, ``"ciou"`` of the boxes.
        smooth_l1_beta: error below which smooth L1 is quadratic; 0 is L1.

    Raises:
        ValueError: for another type of loss.
    """
    if isinstance(anchors[0], Boxes):
        anchors = [boxes.tensor for boxes in anchors]
    # Only the foreground is computed: elsewhere the "ground truth" may be boxes of size 0.
    fg_anchors = cat(anchors).expand(len(gt_boxes), -1, -1)[fg_mask]
    fg_deltas = cat(pred_anchor_deltas, dim=1)[fg_mask]
    fg_gt_boxes = torch.stack(list(gt_boxes))[fg_mask]
    if box_reg_loss_type == "smooth_l1":
        target = box2box_transform.get_deltas(fg_anchors, fg_gt_boxes)
        if smooth_l1_beta < 1e-5:
            return F.l1_loss(fg_deltas, target, reduction="sum")
        return F.smooth_l1_loss(fg_deltas, target, beta=smooth_l1_beta, reduction="sum")
    if box_reg_loss_type not in _BOX_LOSSES:
        known = ", ".join(["smooth_l1", *_BOX_LOSSES])
        raise ValueError(f"There is no box regression loss '{box_reg_loss_type}'. Known: {known}.")
    pred_boxes = box2box_transform.apply_deltas(fg_deltas, fg_anchors)
    return _BOX_LOSSES[box_reg_loss_type](pred_boxes, fg_gt_boxes, reduction="sum")
