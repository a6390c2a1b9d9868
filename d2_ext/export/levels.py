"""From the feature maps of a detector to its predictions, in operators that a graph can hold.

Sparse towers are computed by their definition, at all positions with masks, which is what formats without sparse
convolution can say. Letters: N images, R boxes of a level, A anchors of a cell, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from d2_ext.errors import ConfigError
from d2_ext.export.candidates import LevelOutput
from d2_ext.modeling.heads.base import LevelMaps
from d2_ext.modeling.heads.sparse import SparseHead, TowerPass, dense_maps
from d2_ext.modeling.meta_arch.dense import BaseDenseDetector
from d2_ext.modeling.selection import SelectionRule

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn


class Answers(Protocol):
    """What a graph asks of a detector; see ``BaseDenseDetector``."""

    def selection_rule(self) -> SelectionRule: ...

    def cell_references(self, level: int) -> tuple[float, Tensor | None]: ...

    def decode_boxes(self, level: int, references: Tensor, values: Tensor) -> Tensor: ...


class StockRetinaNet:
    """The answers of Detectron2's RetinaNet, which cannot give them itself."""

    def __init__(self, model: RetinaNet) -> None:
        self.model = model

    def selection_rule(self) -> SelectionRule:
        """Pairs by their score."""
        model = self.model
        limits = (model.test_score_thresh, model.test_topk_candidates, model.test_nms_thresh)
        return SelectionRule(*limits, model.max_detections_per_image)

    def cell_references(self, level: int) -> tuple[float, Tensor | None]:
        """The anchors of a cell."""
        generator = self.model.anchor_generator
        return generator.offset * generator.strides[level], list(generator.cell_anchors)[level]

    def decode_boxes(self, level: int, references: Tensor, values: Tensor) -> Tensor:
        """Apply deltas to anchors."""
        return self.model.box2box_transform.apply_deltas(values, references)


def check_exportable(model: nn.Module) -> None:
    """Refuse what no graph is known for.

    Raises:
        ConfigError: naming the model and what can be exported.
    """
    if not isinstance(model, (BaseDenseDetector, RetinaNet)):
        raise ConfigError(
            f"{type(model).__name__} cannot be exported; expected FCOS, DeFCN, RetinaNet, GFL or one of their sparse "
            "versions. Detectron2's own export tool knows its two-stage models."
        )
    if any("Deform" in type(module).__name__ for module in model.modules()):
        raise ConfigError(
            f"{type(model).__name__} with deformable convolutions cannot be exported: the runtimes have no operator in "
            "common for them. Train without DEFORM_LAST_CONV and RESNETS.DEFORM_ON_PER_STAGE."
        )
    generator = getattr(model, "anchor_generator", None)
    if generator is not None and not isinstance(generator, DefaultAnchorGenerator):
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR.NAME {type(generator).__name__} cannot be exported; expected "
            "DefaultAnchorGenerator."
        )


def answers(model: nn.Module) -> Answers:
    """Who answers for a detector that :func:`check_exportable` lets pass."""
    return StockRetinaNet(model) if isinstance(model, RetinaNet) else model


def level_outputs(
    model: nn.Module, features: Sequence[Tensor], tower_pass: TowerPass = dense_maps
) -> list[LevelOutput]:
    """Run the head of a detector.

    Args:
        model: one that :func:`check_exportable` lets pass.
        features: (N, C, Hl, Wl) of each level, finest first.
        tower_pass: computes sparse towers.
    """
    detector, head = answers(model), model.head
    if isinstance(head, SparseHead):
        maps = head.maps(features, tower_pass, all_boxes=head.base_counts(detector.selection_rule().score_thresh))
    elif isinstance(model, RetinaNet):
        logits, deltas = head(list(features))
        maps = LevelMaps(logits, deltas, [])
    else:
        maps = head.maps(features)
    shapes = model.backbone.output_shape()
    levels = []
    for number, (name, x, raw) in enumerate(zip(model.head_in_features, maps.logits, maps.boxes)):
        offset, anchors = detector.cell_references(number)
        references = cell_points(x, shapes[name].stride, offset)
        values = raw.shape[1]
        if anchors is not None:
            references = (references.repeat(1, 2)[:, None] + anchors).flatten(0, 1)
            values //= len(anchors)
        quality = permute_to_N_HWA_K(maps.quality[number], 1) if maps.quality else None
        logits, raw_boxes = permute_to_N_HWA_K(x, model.num_classes), permute_to_N_HWA_K(raw, values)
        levels.append(LevelOutput(logits, quality, raw_boxes, references, partial(detector.decode_boxes, number)))
    return levels


def cell_points(x: Tensor, stride: int, offset: float) -> Tensor:
    """Points (H * W, 2) as (x, y) px, one of each cell of a map (N, C, H, W), row by row; the first at ``offset``."""
    height, width = x.shape[-2:]
    xs = torch.arange(width, device=x.device, dtype=torch.float32) * stride + offset
    ys = torch.arange(height, device=x.device, dtype=torch.float32) * stride + offset
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1)
