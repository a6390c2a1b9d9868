"""Suppression of boxes that overlap a better one."""

from __future__ import annotations

from torch import Tensor
from torchvision import ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes (N, 4), compared in float32, whose IoU with a better one of the same class exceeds the threshold.

    ``scores`` and classes ``idxs`` are (N,). Gives the indices of the kept boxes by descending score. AssertionError
    for boxes of other than 4 numbers.
    """
    if boxes.shape[-1] == 4:
        return ops.batched_nms(boxes=boxes.float(), scores=scores, idxs=idxs, iou_threshold=iou_threshold)
    raise AssertionError(f"Boxes of 4 numbers were expected, not of {boxes.shape[-1]}.")
