"""Load the golden cases of CEASC into the project's modules: keys renamed, anchors put into Detectron2's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.modeling.assigners.max_iou import MaxIoUAssigner
from d2_ext.modeling.heads.sparse import CeascHead
from d2_ext.modeling.meta_arch.retinanet_ceasc import RetinaNetCEASC

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

# Anchor d of Detectron2 (scale major) is anchor PERM[d] of the reference (ratio major).
PERM = [0, 3, 6, 1, 4, 7, 2, 5, 8]
STRIDES = (8, 16, 32)
CHANNELS, CLASSES = 64, 4
RENAMED = {
    "cls_pw_convs.0": "cls_tower.context_conv",
    "reg_pw_convs.0": "reg_tower.context_conv",
    "retina_cls_mask.0": "cls_tower.mask_conv",
    "retina_reg_mask.0": "reg_tower.mask_conv",
    "retina_cls.conv": "cls_tower.predictors.logits",
    "retina_reg.conv": "reg_tower.predictors.deltas",
    **{f"{b}_convs.{i}.0.conv": f"{b}_tower.layers.{i}.conv" for b in ("cls", "reg") for i in range(4)},
    **{f"{b}_convs.{i}.0.gn": f"{b}_tower.layers.{i}.norm" for b in ("cls", "reg") for i in range(4)},
}


class StoredFeatures(Backbone):
    """A backbone that returns stored maps for any input."""

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"p{3 + i}": f for i, f in enumerate(self.features)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{3 + i}": ShapeSpec(channels=CHANNELS, stride=s) for i, s in enumerate(STRIDES)}

    @property
    def size_divisibility(self) -> int:
        return 32


def load(folder: Path, name: str) -> dict[str, Any]:
    """One golden file."""
    return torch.load(folder / f"ceasc_{name}.pt", weights_only=True)


def permuted(name: str, value: Tensor) -> Tensor:
    """Value of a reference parameter with its anchors in Detectron2's order."""
    if name.startswith(("retina_cls.", "retina_reg.")):
        return value.view(9, -1, *value.shape[1:])[PERM].reshape(value.shape)
    return value


def renamed(key: str) -> str:
    """Our key of a reference parameter."""
    module, leaf = key.rsplit(".", 1)
    return f"{RENAMED[module]}.{leaf}"


def permuted_maps(maps: list[Tensor]) -> list[Tensor]:
    """Reference predictions (N, 9*D, H, W) with their anchors in Detectron2's order."""
    return [m.view(m.shape[0], 9, -1, *m.shape[2:])[:, PERM].reshape(m.shape) for m in maps]


def golden_head(folder: Path) -> CeascHead:
    """The head with the golden weights."""
    shapes = [ShapeSpec(channels=CHANNELS, stride=s) for s in STRIDES]
    head = CeascHead(input_shape=shapes, num_classes=CLASSES, num_anchors=9)
    weights = load(folder, "retina_weights")["state_dict"]
    head.load_state_dict({renamed(k): permuted(k, v) for k, v in weights.items()})
    return head


def golden_noise(case: dict[str, Any]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Stored noise in the form that the head takes."""
    noise = case["noise_U1_U2"]
    return {b: [noise[f"L{i}.retina_{b}_mask"] for i in range(len(STRIDES))] for b in ("cls", "reg")}


def golden_model(folder: Path, features: list[Tensor], **arguments: Any) -> RetinaNetCEASC:
    """The detector with the golden head on stored features."""
    defaults: dict[str, Any] = {
        "backbone": StoredFeatures(features),
        "head": golden_head(folder),
        "head_in_features": ["p3", "p4", "p5"],
        "anchor_generator": anchor_generator(STRIDES),
        "box2box_transform": Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        "anchor_matcher": MaxIoUAssigner(),
        "num_classes": CLASSES,
        "max_detections_per_image": 500,
        "pixel_mean": [0.0, 0.0, 0.0],
        "pixel_std": [1.0, 1.0, 1.0],
    }
    return RetinaNetCEASC(**{**defaults, **arguments})


def anchor_generator(strides: tuple[int, ...]) -> DefaultAnchorGenerator:
    """Nine anchors a position, octaves of 4 strides."""
    sizes = [[4.0 * s * 2 ** (i / 3) for i in range(3)] for s in strides]
    return DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=list(strides), offset=0.0)
