"""Suppression of boxes that overlap a better one."""

from __future__ import annotations

from torch import Tensor
from torchvision import ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes of the same class only.

    Args:
        boxes: (N, 4) left, top, right, bottom; compared in float32.
        scores: (N,).
        idxs: (N,) class of each box.
        iou_threshold: a box goes if its IoU with a kept one of higher score exceeds it.

    Returns:
        Indices of the kept boxes by descending score.

    Raises:
        AssertionError: if boxes have other than 4 numbers.
    """
    if boxes.shape[-1] == 4:
        return ops.batched_nms(boxes=boxes.float(), scores=scores, idxs=idxs, iou_threshold=iou_threshold)
    raise AssertionError(f"Boxes of 4 numbers were expected, not of {boxes.shape[-1]}.")
