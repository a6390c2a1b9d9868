"""Non-maximum suppression."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress, among boxes of equal index, those that overlap a better one by more than the threshold.

    Args:
        boxes: (N, 4) XYXY in px, of any float dtype.
        scores: (N,).
        idxs: (N,) class of each box; boxes of different classes leave each other alone.
        iou_threshold: in [0, 1].

    Returns:
        Indices of the kept boxes, best first.
    """
    assert boxes.shape[-1] == 4, f"Boxes have 4 coordinates, not {boxes.shape[-1]}."
    # Classes are separated by offsets, for which half precision has not the range.
    return box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
