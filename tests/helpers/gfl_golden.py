"""Load the golden cases of GFL-CEASC into the project's modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.modeling.heads.sparse import GflCeascHead
from d2_ext.modeling.meta_arch.gfl import GFLCEASC

from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor

from helpers.ceasc_golden import CHANNELS, CLASSES, RENAMED, STRIDES, StoredFeatures, load

GFL_RENAMED = {
    **{k: v for k, v in RENAMED.items() if not k.startswith("retina")},
    "gfl_cls_mask.0": "cls_tower.mask_conv",
    "gfl_reg_mask.0": "reg_tower.mask_conv",
    "gfl_cls.conv": "cls_tower.predictors.logits",
    "gfl_reg.conv": "reg_tower.predictors.distributions",
    **{f"scales.{i}": f"scales.{i}" for i in range(len(STRIDES))},
}


def renamed(key: str) -> str:
    """Our key of a reference parameter."""
    module, leaf = key.rsplit(".", 1)
    return f"{GFL_RENAMED[module]}.{leaf}"


def golden_head(folder: Path) -> GflCeascHead:
    """The head with the golden weights."""
    shapes = [ShapeSpec(channels=CHANNELS, stride=s) for s in STRIDES]
    head = GflCeascHead(input_shape=shapes, num_classes=CLASSES, cls_base=-5.0)
    weights = load(folder, "gfl_weights")["state_dict"]
    head.load_state_dict(
        {renamed(k): v.reshape(-1) if v.dim() == 0 else v for k, v in weights.items() if "project" not in k}
    )
    return head


def golden_noise(case: dict[str, Any]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Stored noise in the form that the head takes."""
    noise = case["noise_U1_U2"]
    return {b: [noise[f"L{i}.gfl_{b}_mask"] for i in range(len(STRIDES))] for b in ("cls", "reg")}


def golden_model(folder: Path, features: list[Tensor], **arguments: Any) -> GFLCEASC:
    """The detector with the golden head on stored features."""
    defaults: dict[str, Any] = {
        "backbone": StoredFeatures(features),
        "head": golden_head(folder),
        "head_in_features": ["p3", "p4", "p5"],
        "anchor_generator": anchor_generator(STRIDES),
        "num_classes": CLASSES,
        "max_detections_per_image": 500,
        "pixel_mean": [0.0, 0.0, 0.0],
        "pixel_std": [1.0, 1.0, 1.0],
    }
    return GFLCEASC(**{**defaults, **arguments})


def anchor_generator(strides: tuple[int, ...]) -> DefaultAnchorGenerator:
    """One anchor a position, a square of 8 strides."""
    return DefaultAnchorGenerator(
        sizes=[[8.0 * s] for s in strides], aspect_ratios=[[1.0]], strides=list(strides), offset=0.0
    )
