"""Tiny detectors of every kind for the tests of export, strong enough to detect something in noise."""

from __future__ import annotations

from typing import Any

from d2_ext import add_d2_ext_config

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from torch import Tensor, nn

CHANNELS = 64
NUM_CLASSES = 3
LEVELS = {"p3": 8, "p4": 16}


class PatchBackbone(Backbone):
    """Levels p3 and p4, one convolution each: as few operators as a pyramid can have."""

    def __init__(self) -> None:
        super().__init__()
        self.p3 = nn.Conv2d(3, CHANNELS, 8, stride=8)
        self.p4 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        p3 = self.p3(x).relu()
        return {"p3": p3, "p4": self.p4(p3).relu()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=CHANNELS, stride=stride) for name, stride in LEVELS.items()}


if "tests_patch_backbone" not in BACKBONE_REGISTRY:

    def tests_patch_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PatchBackbone:
        return PatchBackbone()

    BACKBONE_REGISTRY.register(tests_patch_backbone)

# Name -> meta-architecture and options.
MODELS: dict[str, tuple[str, list[Any]]] = {
    "fcos": ("FCOS", []),
    "fcos_original": (
        "FCOS",
        ["MODEL.FCOS.INCLUSIVE_PIXELS", True, "MODEL.FCOS.BOX_ACTIVATION", "exp", "MODEL.FCOS.QUALITY_ON", "cls"],
    ),
    "fcos_sparse": ("FCOS", ["MODEL.FCOS.SPARSE", True]),
    "fcos_sparse_ln": ("FCOS", ["MODEL.FCOS.SPARSE", True, "MODEL.CEASC.NORM", "LN", "MODEL.CEASC.MASK_CHANNELS", 16]),
    "defcn": ("DeFCN", ["MODEL.DEFCN.FILTER.ENABLED", True]),
    "defcn_sparse": ("DeFCN", ["MODEL.DEFCN.SPARSE", True]),
    "retinanet": ("RetinaNet", []),
    "retinanet_ceasc": ("RetinaNetCEASC", []),
    "gfl": ("GFL", ["MODEL.GFL.SCORE_THRESH_TEST", 0.6]),  # which noise reaches, but no black image
    "gfl_ceasc": ("GFLCEASC", []),
}


def tiny_config(name: str, *options: Any) -> CfgNode:
    """Config of one of ``MODELS``."""
    architecture, own = MODELS[name]
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.BACKBONE.NAME = "tests_patch_backbone"
    cfg.MODEL.PIXEL_STD = [58.0, 57.0, 56.0]
    cfg.INPUT.MIN_SIZE_TEST = 0
    for node, convs in (
        (cfg.MODEL.FCOS, ("NUM_CLS_CONVS", "NUM_BOX_CONVS")),
        (cfg.MODEL.DEFCN, ("NUM_CONVS",)),
        (cfg.MODEL.RETINANET, ("NUM_CONVS",)),
        (cfg.MODEL.GFL, ("NUM_CONVS",)),
    ):
        node.NUM_CLASSES = NUM_CLASSES
        node.IN_FEATURES = list(LEVELS)
        for key in convs:
            node[key] = 1
    cfg.MODEL.FCOS.SIZES_OF_INTEREST = [32]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16.0, 20.0], [32.0, 40.0]]
    if architecture.startswith("GFL"):
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64.0], [128.0]]
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.merge_from_list([*own, *options])
    return cfg


def tiny_model(name: str, *options: Any) -> nn.Module:
    """One of ``MODELS`` with random weights, in evaluation mode; sparse towers are active here and there."""
    torch.manual_seed(0)
    model = build_model(tiny_config(name, *options))
    sparse = hasattr(model.head, "hard_masks")  # their features grow from layer to layer
    for key, parameter in model.head.named_parameters():
        if key.endswith("mask_conv.weight"):  # sees edges: active here and there
            parameter.data.copy_(0.1 * (torch.randn(parameter.shape) - torch.randn(parameter.shape)))
            parameter.data.sub_(parameter.data.mean(dim=(2, 3), keepdim=True))
        elif key.endswith("mask_conv.bias"):
            nn.init.constant_(parameter, -0.02)
        elif key.endswith("mask_stem.weight"):
            nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == 4:
            last = any(part in key for part in ("cls_logits", "cls_score", "logits"))
            nn.init.normal_(parameter, std=(0.004 if last else 0.01) if sparse else (0.08 if last else 0.04))
        elif key.endswith(("cls_logits.bias", "cls_score.bias", "logits.bias")):
            nn.init.constant_(parameter, -1.5)
    return model.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Images (N, 3, H, W) of coarse noise, uint8."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = shape
    cells = torch.rand(count, channels, height // 16 + 1, width // 16 + 1, generator=generator)
    return (nn.functional.interpolate(cells, size=(height, width), mode="bilinear") * 255).to(torch.uint8)
