"""From the feature maps of a detector to its predictions, in operators that a graph can hold.

Sparse towers are computed by their definition, at all positions with masks, which is what formats without sparse
convolution can say. Letters: N images, B boxes of a level, A anchors of a cell, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from d2_ext.errors import ConfigError
from d2_ext.export.candidates import LevelOutput, SelectionRule
from d2_ext.layers.sparse.tower import ContextSparseTower
from d2_ext.modeling.box_codec import decode_ltrb
from d2_ext.modeling.heads.ceasc_head import CeascHead
from d2_ext.modeling.heads.sparse_point_head import SparsePointHead
from d2_ext.modeling.meta_arch.anchor_rows import AnchorRowDetector
from d2_ext.modeling.meta_arch.defcn import DeFCN
from d2_ext.modeling.meta_arch.fcos import FCOS
from d2_ext.modeling.meta_arch.gfl import GFL
from d2_ext.modeling.meta_arch.point_detector import PointDetector, flatten_levels

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn

TowerPass = Callable[[ContextSparseTower, Sequence[Tensor], Sequence[Tensor]], dict[str, list[Tensor]]]


def dense_maps(tower: ContextSparseTower, maps: Sequence[Tensor], masks: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Predictions of a sparse tower by its definition: by name L maps (N, C, Hl, Wl).

    Args:
        tower: its weights.
        maps: (N, C, Hl, Wl) each.
        masks: bool (N, 1, Hl, Wl) each.
    """
    levels = [tower.forward_dense([x], [mask.float()]).predictions for x, mask in zip(maps, masks)]
    return {name: [level[name].maps()[0] for level in levels] for name in tower.predictors}


def selection_rule(model: nn.Module) -> SelectionRule:
    """How a detector chooses its detections.

    Raises:
        ConfigError: for a meta-architecture that cannot be exported.
    """
    common = {
        "score_thresh": model.test_score_thresh,
        "topk": model.test_topk_candidates,
        "nms_thresh": model.test_nms_thresh,
        "max_detections": model.max_detections_per_image,
        "thresh_with_quality": False,
        "rank_with_quality": False,
        "root": False,
        "clip_first": False,
    }
    if isinstance(model, FCOS):
        by_class = model.ranking == "cls"
        return SelectionRule(
            **{
                **common,
                "unit": "location" if by_class else "pair",
                "thresh_with_quality": model.thresh_with_quality,
                "rank_with_quality": not by_class,
                "root": model.box_quality != "none",
                "inclusive_pixels": model.inclusive_pixels,
            }
        )
    if isinstance(model, DeFCN):
        return SelectionRule(**{**common, "unit": "location", "thresh_with_quality": True, "rank_with_quality": True})
    if isinstance(model, AnchorRowDetector):
        return SelectionRule(**{**common, "unit": model.pre_nms_unit, "clip_first": True})
    return SelectionRule(**common, unit="pair")


def check_exportable(model: nn.Module) -> None:
    """Refuse what no graph is known for.

    Raises:
        ConfigError: naming the model and what can be exported.
    """
    if not isinstance(model, (FCOS, DeFCN, GFL, RetinaNet)):
        raise ConfigError(
            f"{type(model).__name__} cannot be exported; expected FCOS, DeFCN, RetinaNet, GFL or one of their sparse "
            "versions. Detectron2's own export tool knows its two-stage models."
        )
    if any("DeformConv" in type(module).__name__ for module in model.modules()):
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


def level_outputs(
    model: nn.Module, features: Sequence[Tensor], tower_pass: TowerPass = dense_maps
) -> list[LevelOutput]:
    """Run the head of a detector.

    Args:
        model: one that :func:`check_exportable` lets pass.
        features: (N, C, Hl, Wl) of each level, finest first.
        tower_pass: computes sparse towers.
    """
    if isinstance(model, PointDetector):
        return _point_levels(model, features, tower_pass)
    return _anchor_levels(model, features, tower_pass)


def _point_levels(model: PointDetector, features: Sequence[Tensor], tower_pass: TowerPass) -> list[LevelOutput]:
    head = model.head
    if isinstance(head, SparsePointHead):
        masks = head.hard_masks(features)
        cls = tower_pass(head.cls_tower, features, masks["cls"])
        reg = tower_pass(head.reg_tower, features, masks["reg"])
        boxes = [head.distances(raw, level) for level, raw in enumerate(reg["boxes"])]
        logits, quality = cls["logits"], reg.get("quality", [])
    else:
        logits, boxes, quality = head(list(features))
    anchors = isinstance(model, DeFCN) and model.assigner == "anchor"
    decode = _deltas_decoder(model) if anchors else decode_ltrb
    levels = []
    for number, (x, stride) in enumerate(zip(logits, model.strides)):
        points = cell_points(x, stride, stride // 2)
        if anchors:
            half = model.anchor_sizes[number] / 2
            points = torch.cat([points - half, points + half], dim=1)
        rows = [flatten_levels([y]) for y in (x, boxes[number], *quality[number : number + 1])]
        levels.append(LevelOutput(rows[0], rows[2] if quality else None, rows[1], points, decode))
    return levels


def _anchor_levels(model: nn.Module, features: Sequence[Tensor], tower_pass: TowerPass) -> list[LevelOutput]:
    logits, raw_boxes = _anchor_maps(model, features, tower_pass)
    shapes = model.backbone.output_shape()
    generator = model.anchor_generator
    levels = []
    for number, name in enumerate(model.head_in_features):
        stride = shapes[name].stride
        cell = list(generator.cell_anchors)[number]  # (A, 4)
        centres = cell_points(logits[number], stride, generator.offset * stride).repeat(1, 2)
        anchors = (centres[:, None] + cell).flatten(0, 1)
        values = raw_boxes[number].shape[1] // len(cell)
        own = isinstance(model, AnchorRowDetector)
        decode = partial(model.decode_boxes, number) if own else _deltas_decoder(model)
        rows = permute_to_N_HWA_K(logits[number], model.num_classes), permute_to_N_HWA_K(raw_boxes[number], values)
        levels.append(LevelOutput(rows[0], None, rows[1], anchors, decode))
    return levels


def _anchor_maps(
    model: nn.Module, features: Sequence[Tensor], tower_pass: TowerPass
) -> tuple[list[Tensor], list[Tensor]]:
    """Class logits and raw boxes, L maps (N, A * K, Hl, Wl) and (N, A * V, Hl, Wl)."""
    head = model.head
    if isinstance(head, CeascHead):
        masks = head.hard_masks(features)
        logits = tower_pass(head.cls_tower, features, masks["cls"])["logits"]
        boxes = tower_pass(head.reg_tower, features, masks["reg"])[head.box_output]
    elif isinstance(model, GFL):
        logits = [head.cls_logits(head.cls_tower(x)) for x in features]
        boxes = [head.distributions(head.reg_tower(x)) for x in features]
    else:
        return head(list(features))
    if isinstance(model, GFL):
        boxes = [scale(x) for scale, x in zip(head.scales, boxes)]
    return logits, boxes


def _deltas_decoder(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The model's box transform as a function of (anchors, deltas)."""
    return lambda anchors, deltas: model.box2box_transform.apply_deltas(deltas, anchors)


def cell_points(x: Tensor, stride: int, offset: float) -> Tensor:
    """Points (H * W, 2) as (x, y) px, one of each cell of a map (N, C, H, W), row by row; the first at ``offset``."""
    height, width = x.shape[-2:]
    xs = torch.arange(width, device=x.device, dtype=torch.float32) * stride + offset
    ys = torch.arange(height, device=x.device, dtype=torch.float32) * stride + offset
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1)
