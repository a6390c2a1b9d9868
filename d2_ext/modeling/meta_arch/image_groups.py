"""Images that do not influence each other, whatever batch they come in.

Statistics over a whole image see its padding, and the padding depends on the largest image of the batch. So
inference runs images together only if each is padded as it would be alone. Letters: N images, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from d2_ext.modeling.heads.masked_branches import BRANCHES
from d2_ext.modeling.padding import padded_size

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor

Result = TypeVar("Result")
LevelMasks = dict[str, dict[str, Tensor]]


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


def groups_of_equal_size(backbone: Backbone, batched_inputs: list[dict[str, Any]]) -> list[list[int]]:
    """Numbers of the images that have the same padded size, group by group."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, item in enumerate(batched_inputs):
        groups.setdefault(padded_size(backbone, *item["image"].shape[-2:]), []).append(number)
    return list(groups.values())


@torch.no_grad()
def activation_masks(model: DenseDetector, batched_inputs: list[dict[str, Any]]) -> list[LevelMasks]:
    """Masks of inference of a detector whose head is a ``MaskedBranches``, in whatever mode it is.

    Args:
        model: the detector.
        batched_inputs: dicts with ``image`` (3, H, W).

    Returns:
        Per image, by level name ("p3", ...) and branch ("cls", "reg"): bool (ceil(H / stride), ceil(W / stride)),
        True where the head computes.
    """

    def run(group: list[dict[str, Any]]) -> list[LevelMasks]:
        images = model.preprocess_image(group)
        features = model.backbone(images.tensor)
        masks = model.head.hard_masks([features[name] for name in model.head_in_features])
        return [_cropped(model, masks, row, size) for row, size in enumerate(images.image_sizes)]

    return run_in_groups(model.backbone, batched_inputs, run)


def _cropped(model: DenseDetector, masks: Mapping[str, list[Tensor]], row: int, size: Sequence[int]) -> LevelMasks:
    """Masks of one image of a group without its padding; ``size`` is (height, width) in px."""
    shapes = model.backbone.output_shape()
    cropped = {}
    for level, name in enumerate(model.head_in_features):
        height, width = (math.ceil(int(side) / shapes[name].stride) for side in size)
        cropped[name] = {branch: masks[branch][level][row, 0, :height, :width] for branch in BRANCHES}
    return cropped
