"""How large an image becomes when a detector pads it, and which images can be padded together.

Statistics over a whole image see its padding, and the padding depends on the largest image of the batch. So detectors
that take such statistics run images together only if each is padded as it would be alone: the detections of an image do
not depend on the others of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from detectron2.modeling.backbone import Backbone

Result = TypeVar("Result")


def padded_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """Size (height, width) in px of one image after it is padded alone, as ``preprocess_image`` does it."""
    constraints = backbone.padding_constraints
    if constraints.get("square_size", 0) > 0:
        return constraints["square_size"], constraints["square_size"]
    step = max(constraints.get("size_divisibility", backbone.size_divisibility), 1)
    return math.ceil(height / step) * step, math.ceil(width / step) * step


def groups_of_equal_size(backbone: Backbone, batched_inputs: list[dict[str, Any]]) -> list[list[int]]:
    """Numbers of the images that have the same padded size, group by group."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, item in enumerate(batched_inputs):
        groups.setdefault(padded_size(backbone, *item["image"].shape[-2:]), []).append(number)
    return list(groups.values())


def run_in_groups(
    backbone: Backbone,
    batched_inputs: list[dict[str, Any]],
    run: Callable[[list[dict[str, Any]]], Sequence[Result]],
) -> list[Result]:
    """Run a function on groups of images of equal padded size.

    Args:
        backbone: whose divisibility decides on the padding.
        batched_inputs: dicts with ``image`` (3, H, W).
        run: gives one result per image of a group.

    Returns:
        The results in the order of the images.
    """
    results: dict[int, Result] = {}
    for group in groups_of_equal_size(backbone, batched_inputs):
        results.update(zip(group, run([batched_inputs[i] for i in group]), strict=True))
    return [results[i] for i in range(len(batched_inputs))]
