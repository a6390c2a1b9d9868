"""Ignore regions: parts of an image in which no detection and no background is judged.

The data mapper appends them to the ground truth as rows with ``gt_classes == -1``; detectors split them off here, and
label background anchors (or locations) inside them as ignored.
"""

from __future__ import annotations

import torch
from detectron2.structures import Instances
from torch import Tensor

IGNORED = -1
MIN_INSIDE = 0.5  # share of an anchor's area inside a region from which on it is ignored


def split_ignore_regions(instances: Instances) -> tuple[Instances, Tensor]:
    """Separate the objects of one image from its ignore regions.

    Args:
        instances: ground truth with ``gt_boxes`` and ``gt_classes``.

    Returns:
        The rows with a class of 0 or more, and the boxes of the others, (M, 4) XYXY in px of the same frame.
    """
    ignored = instances.gt_classes == IGNORED
    return instances[~ignored], instances.gt_boxes.tensor[ignored]


def boxes_in_regions(boxes: Tensor, regions: Tensor, min_inside: float = MIN_INSIDE) -> Tensor:
    """Which boxes lie inside an ignore region.

    Args:
        boxes: (R, 4) XYXY, for example anchors.
        regions: (M, 4) XYXY in the same frame.
        min_inside: smallest intersection over the box's own area (IoF) that counts, in (0, 1].

    Returns:
        bool (R,). Regions are looked at one by one: two that cover half of the threshold each do not add up.
    """
    inside = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    for region in regions:  # few; a loop keeps the memory at one number a box
        overlap = (torch.minimum(boxes[:, 2:], region[2:]) - torch.maximum(boxes[:, :2], region[:2])).clamp(min=0)
        inside |= (overlap.prod(dim=1) >= min_inside * area) & (area > 0)
    return inside


def points_in_regions(points: Tensor, regions: Tensor) -> Tensor:
    """Which points (R, 2) xy lie inside an ignore region (M, 4) XYXY, border included: bool (R,)."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for region in regions:
        inside |= ((points >= region[:2]) & (points <= region[2:])).all(dim=1)
    return inside
