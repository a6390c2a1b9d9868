"""How a network's numbers move one box onto another, and the losses on them. Boxes are XYXY px."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2._missing import refuse
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

__getattr__ = refuse(__name__, "Box2BoxTransformRotated")

_LARGEST_LOG_SCALE = math.log(1000.0 / 16)  # a stride of 16 px becomes at most 1000 px
_IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Split boxes (..., 4) into centers (..., 2) and widths with heights (..., 2)."""
    assert isinstance(boxes, Tensor), f"expected a tensor of boxes (..., 4), got {type(boxes).__name__}"
    low, high = boxes.split(2, dim=-1)
    sizes = high - low
    return low + sizes * 0.5, sizes


class Box2BoxTransform:
    """Deltas (dx, dy, dw, dh) of R-CNN: the way of the center in sizes of the source, and the logarithm of the scale.

    Args:
        weights: factors on the four deltas.
        scale_clamp: largest logarithm of a scale when deltas are applied; there is no smallest.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _LARGEST_LOG_SCALE) -> None:
        self.weights, self.scale_clamp = weights, scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Give the deltas (R, 4) that bring sources (R, 4), of positive size, to their targets (R, 4)."""
        centers, sizes = _centers_and_sizes(src_boxes)
        new_centers, new_sizes = _centers_and_sizes(target_boxes)
        assert (sizes > 0).all(), "deltas need sources of positive width and height"
        for_way, for_scale = sizes.new_tensor(self.weights).split(2)
        way = for_way * (new_centers - centers) / sizes
        return torch.cat([way, for_scale * (new_sizes / sizes).log()], dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Move boxes (R, 4) by k deltas each (R, 4 * k), in float32; gives boxes (R, 4 * k)."""
        deltas = deltas.float().unflatten(1, (-1, 4))
        way, log_scale = (deltas / deltas.new_tensor(self.weights)).split(2, dim=2)
        centers, sizes = (x.unsqueeze(1) for x in _centers_and_sizes(boxes.to(way.dtype)))
        centers = centers + way * sizes
        reach = log_scale.clamp(max=self.scale_clamp).exp() * sizes * 0.5
        return torch.cat([centers - reach, centers + reach], dim=2).flatten(1)


class Box2BoxTransformLinear:
    """Distances (left, top, right, bottom) from the center of a source to the sides of the target, as in FCOS.

    Args:
        normalize_by_size: whether the unit is the source's width and height, instead of px.
    """

    def __init__(self, normalize_by_size: bool = True) -> None:
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Give the distances (R, 4) from the centers of sources (R, 4) to their targets (R, 4)."""
        center, unit = self._origin(src_boxes)
        low, high = target_boxes.split(2, dim=-1)
        return torch.cat([center - low, high - center], dim=-1) / unit

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Make boxes (R, 4) of distances (R, 4) from ``boxes`` (R, 4); negative distances count as 0."""
        center, unit = self._origin(boxes.to(deltas.dtype))
        before, after = (deltas.relu() * unit).split(2, dim=-1)
        return torch.cat([center - before, center + after], dim=-1)

    def _origin(self, boxes: Tensor) -> tuple[Tensor, Tensor | float]:
        """Centers (R, 2), and what one unit of the distances is in px, (R, 4) or 1."""
        assert isinstance(boxes, Tensor), f"expected a tensor of boxes (R, 4), got {type(boxes).__name__}"
        low, high = boxes.split(2, dim=-1)
        return (low + high) / 2, (high - low).repeat(1, 2) if self.normalize_by_size else 1.0


def _dense_box_regression_loss(
    anchors: Sequence[Boxes] | Sequence[Tensor],
    box2box_transform: Box2BoxTransform | Box2BoxTransformLinear,
    pred_anchor_deltas: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    fg_mask: Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the box losses of all foreground anchors.

    Args:
        anchors: of L levels, R in total.
        pred_anchor_deltas: L tensors (N, anchors of the level, 4).
        gt_boxes: N tensors (R, 4), targets where ``fg_mask`` (N, R) is True.
        box_reg_loss_type: ``"smooth_l1"`` on the deltas; or ``"giou"``, ``"diou"``, ``"ciou"`` on the boxes.
        smooth_l1_beta: where the smooth L1 loss goes from quadratic to linear; 0 for the L1 loss.
    """
    # Foreground is rare, so it is picked out first, and nothing is computed for the rest.
    image, place = fg_mask.nonzero(as_tuple=True)
    sources = torch.cat([getattr(level, "tensor", level) for level in anchors])[place]
    targets = torch.stack(tuple(gt_boxes))[image, place]
    deltas = torch.cat(tuple(pred_anchor_deltas), dim=1)[image, place]
    if box_reg_loss_type == "smooth_l1":
        error = (deltas - box2box_transform.get_deltas(sources, targets)).abs()
        if smooth_l1_beta < 1e-5:
            return error.sum()
        # As fvcore has it: the gradient of F.smooth_l1_loss is rounded otherwise, and a few steps of training tell.
        return torch.where(error < smooth_l1_beta, 0.5 * error**2 / smooth_l1_beta, error - 0.5 * smooth_l1_beta).sum()
    if box_reg_loss_type in _IOU_LOSSES:
        return _IOU_LOSSES[box_reg_loss_type](box2box_transform.apply_deltas(deltas, sources), targets, reduction="sum")
    raise ValueError(f"box_reg_loss_type {box_reg_loss_type!r}: expected smooth_l1 or one of {list(_IOU_LOSSES)}")
