"""Assign anchors to ground-truth boxes by their largest IoU (RetinaNet, Faster R-CNN).

Checked against: the assigner of mmdet 2.24, as the CEASC code uses it.
Differs: a box that overlaps no anchor at all gets none, where the original gives it *every* anchor without overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.errors import ConfigError, check_choice

import torch
from torch import Tensor
from torchvision.ops import box_iou

LOW_QUALITY_MATCHES = ("reassign", "keep")
POSITIVE, NEGATIVE, BETWEEN = 1, 0, -1
_CHUNK = 64  # boxes compared at once: bounds the memory of an image with hundreds of boxes


@dataclass(frozen=True)
class MaxIoUAssigner:
    """Rule for one image.

    An anchor is positive from ``positive_iou`` on, negative below ``negative_iou``, and ignored between. Besides, the
    anchors with the largest IoU of a box (all of them if equal) are positive however small it is.

    Attributes:
        negative_iou: in [0, positive_iou].
        positive_iou: in (0, 1].
        low_quality_matches: ``"reassign"`` gives a box's best anchors to that box, a later box winning over an earlier
            one; ``"keep"`` leaves each with the box that it overlaps most.

    Raises:
        ConfigError: for values that cannot work.

    Example:
        >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 7], [90, 90, 99, 99]])
        >>> MaxIoUAssigner()(torch.tensor([[0.0, 0, 10, 9]]), anchors)
        (tensor([0, 0, 0]), tensor([1, 1, 0]))
    """

    negative_iou: float = 0.4
    positive_iou: float = 0.5
    low_quality_matches: str = "reassign"

    def __post_init__(self) -> None:
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ConfigError(
                f"IoU thresholds {self.negative_iou} and {self.positive_iou} are not 0 <= negative <= positive <= 1."
            )
        check_choice("MODEL.CEASC.LOW_QUALITY_MATCHES", self.low_quality_matches, LOW_QUALITY_MATCHES)

    @torch.no_grad()
    def __call__(self, gt_boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Match the anchors of one image.

        Args:
            gt_boxes: (M, 4) XYXY; M may be 0.
            anchors: (R, 4) XYXY in the same frame.

        Returns:
            Number of the matched box of each anchor, int64 (R,), 0 where there is none; and its label, int64 (R,):
            1 positive, 0 negative, -1 between.
        """
        best_iou = anchors.new_zeros(len(anchors))
        matched = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        claimed_by = torch.full_like(matched, -1)  # the last box of which this is a best anchor
        for start in range(0, len(gt_boxes), _CHUNK):
            iou = box_iou(gt_boxes[start : start + _CHUNK], anchors)  # (m, R)
            chunk_iou, chunk_box = iou.max(dim=0)
            matched = torch.where(chunk_iou > best_iou, chunk_box + start, matched)
            best_iou = torch.maximum(best_iou, chunk_iou)
            # The last box of the chunk of which an anchor is a best one, if it overlaps any.
            largest = iou.amax(dim=1, keepdim=True) if iou.shape[1] else iou.sum(dim=1, keepdim=True)
            number = torch.arange(start, start + len(iou), device=iou.device)[:, None]
            claim = torch.where((iou == largest) & (largest > 0), number, -1).amax(dim=0)
            claimed_by = torch.maximum(claimed_by, claim)
        labels = torch.full_like(matched, BETWEEN)
        labels[best_iou < self.negative_iou] = NEGATIVE
        labels[best_iou >= self.positive_iou] = POSITIVE
        labels[claimed_by >= 0] = POSITIVE
        if self.low_quality_matches == "reassign":
            matched = torch.where(claimed_by >= 0, claimed_by, matched)
        return matched, labels
