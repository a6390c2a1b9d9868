"""The golden cases of CEASC in the project's modules: keys renamed, anchors put into Detectron2's order.

There are two detectors: "retina", RetinaNet-CEASC, and "gfl", GFL-CEASC.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.modeling.assigners.max_iou import MaxIoUAssigner
from d2_ext.modeling.heads.sparse import CeascHead, GflCeascHead
from d2_ext.modeling.meta_arch.gfl import GFLCEASC
from d2_ext.modeling.meta_arch.retinanet_ceasc import RetinaNetCEASC

from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from helpers.golden import load

# Anchor d of Detectron2 (scale major) is anchor PERM[d] of the reference (ratio major).
PERM = [0, 3, 6, 1, 4, 7, 2, 5, 8]
STRIDES = (8, 16, 32)
CHANNELS, CLASSES = 64, 4
PREDICTION = {"retina": "deltas", "gfl": "distributions"}  # of the box branch
RENAMED = {
    **{f"{b}_pw_convs.0": f"{b}_tower.context_conv" for b in ("cls", "reg")},
    **{f"{b}_convs.{i}.0.conv": f"{b}_tower.layers.{i}.conv" for b in ("cls", "reg") for i in range(4)},
    **{f"{b}_convs.{i}.0.gn": f"{b}_tower.layers.{i}.norm" for b in ("cls", "reg") for i in range(4)},
    **{f"{name}_{b}_mask.0": f"{b}_tower.mask_conv" for name in PREDICTION for b in ("cls", "reg")},
    **{f"{name}_cls.conv": "cls_tower.predictors.logits" for name in PREDICTION},
    **{f"{name}_reg.conv": f"reg_tower.predictors.{prediction}" for name, prediction in PREDICTION.items()},
    **{f"scales.{i}": f"scales.{i}" for i in range(len(STRIDES))},
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


def permuted(name: str, value: Tensor) -> Tensor:
    """Value of a reference parameter with its anchors in Detectron2's order."""
    if name.startswith(("retina_cls.", "retina_reg.")):
        return value.view(9, -1, *value.shape[1:])[PERM].reshape(value.shape)
    return value.reshape(-1) if value.dim() == 0 else value


def renamed(key: str) -> str:
    """Our key of a reference parameter."""
    module, leaf = key.rsplit(".", 1)
    return f"{RENAMED[module]}.{leaf}"


def permuted_maps(maps: list[Tensor]) -> list[Tensor]:
    """Reference predictions (N, 9*D, H, W) with their anchors in Detectron2's order."""
    return [m.view(m.shape[0], 9, -1, *m.shape[2:])[:, PERM].reshape(m.shape) for m in maps]


def golden_head(golden: Path, name: str) -> CeascHead | GflCeascHead:
    """The head of a detector with the golden weights."""
    shapes = [ShapeSpec(channels=CHANNELS, stride=s) for s in STRIDES]
    if name == "retina":
        head = CeascHead(input_shape=shapes, num_classes=CLASSES, num_anchors=9)
    else:
        head = GflCeascHead(input_shape=shapes, num_classes=CLASSES, cls_base=-5.0)
    weights = load(golden, f"ceasc_{name}_weights")["state_dict"]
    # "integral.project", the constant 0, 1, ... of the reference, is no weight of ours.
    head.load_state_dict({renamed(k): permuted(k, v) for k, v in weights.items() if k != "integral.project"})
    return head


def golden_noise(name: str, case: dict[str, Any]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Stored noise in the form that the head takes."""
    noise = case["noise_U1_U2"]
    return {b: [noise[f"L{i}.{name}_{b}_mask"] for i in range(len(STRIDES))] for b in ("cls", "reg")}


def golden_model(golden: Path, name: str, features: list[Tensor]) -> RetinaNetCEASC | GFLCEASC:
    """A detector with the golden head on stored features."""
    arguments: dict[str, Any] = {
        "backbone": StoredFeatures(features),
        "head": golden_head(golden, name),
        "head_in_features": ["p3", "p4", "p5"],
        "anchor_generator": anchor_generator(name, STRIDES),
        "num_classes": CLASSES,
        "max_detections_per_image": 500,
        "pixel_mean": [0.0, 0.0, 0.0],
        "pixel_std": [1.0, 1.0, 1.0],
    }
    if name == "gfl":
        return GFLCEASC(**arguments)
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    return RetinaNetCEASC(**arguments, box2box_transform=transform, anchor_matcher=MaxIoUAssigner())


def anchor_generator(name: str, strides: tuple[int, ...]) -> DefaultAnchorGenerator:
    """RetinaNet's nine anchors a position, octaves of 4 strides; GFL's one, a square of 8 strides."""
    if name == "retina":
        sizes, ratios = [[4.0 * s * 2 ** (i / 3) for i in range(3)] for s in strides], [0.5, 1.0, 2.0]
    else:
        sizes, ratios = [[8.0 * s] for s in strides], [1.0]
    return DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[ratios], strides=list(strides), offset=0.0)
