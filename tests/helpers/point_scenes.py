"""Scenes and small models for the tests of FCOS and DeFCN."""

from __future__ import annotations

from typing import Any

from d2_ext import add_d2_ext_config
from d2_ext.layers.sparse.rows import RowValues
from d2_ext.modeling.box_codec import PointGrid, make_point_grid
from d2_ext.modeling.heads.base import HeadOutput
from d2_ext.modeling.meta_arch.dense import PointDetector

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

STRIDES = (8, 16, 32, 64, 128)
SCENE_SIZES = ((64, 80), (32, 40), (16, 20), (8, 10), (4, 5))  # maps of the reference scenes of 512 x 640 px
SCENE_CLASSES = 5


class AverageBackbone(Backbone):
    """Pyramid p3..p7 without depth: averages over the cells, then a 1x1 convolution."""

    def __init__(self, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.strides = {f"p{stride.bit_length() - 1}": stride for stride in strides}
        self._out_features = list(self.strides)
        self._out_feature_strides = self.strides
        self._out_feature_channels = dict.fromkeys(self.strides, channels)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            name: self.conv(nn.functional.avg_pool2d(x / 64, stride, ceil_mode=True))
            for name, stride in self.strides.items()
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        channels = self.conv.out_channels
        return {name: ShapeSpec(channels=channels, stride=stride) for name, stride in self.strides.items()}


if "tests_average_backbone" not in BACKBONE_REGISTRY:

    def tests_average_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AverageBackbone:
        return AverageBackbone(cfg.MODEL.FPN.OUT_CHANNELS, STRIDES)

    BACKBONE_REGISTRY.register(tests_average_backbone)


def tiny_cfg(meta_architecture: str, *options: Any) -> CfgNode:
    """Config of a detector of 5 classes with 64 channels on five levels."""
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.BACKBONE.NAME = "tests_average_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.FCOS.NUM_CLASSES = SCENE_CLASSES
    cfg.MODEL.DEFCN.NUM_CLASSES = SCENE_CLASSES
    cfg.merge_from_list(list(options))
    return cfg


def tiny_model(meta_architecture: str, *options: Any) -> PointDetector:
    """Model of :func:`tiny_cfg`, in training mode."""
    return build_model(tiny_cfg(meta_architecture, *options))


def instances(boxes: Any, classes: Any, size: tuple[int, int] = (512, 640)) -> Instances:
    """Ground truth of one image."""
    return Instances(
        size,
        gt_boxes=Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.as_tensor(classes, dtype=torch.long).reshape(-1),
    )


def image(boxes: Any, classes: Any, size: tuple[int, int] = (96, 128)) -> dict[str, Any]:
    """A random image with ground truth, as a model gets it."""
    tensor = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return {"image": tensor, "height": size[0], "width": size[1], "instances": instances(boxes, classes, size)}


def scene_grid() -> PointGrid:
    """Locations of the reference scenes."""
    return make_point_grid(SCENE_SIZES, STRIDES)


def scene_truth(case: dict[str, Any]) -> list[Instances]:
    """Ground truth of both images of a reference scene."""
    return [instances(gt["boxes"], gt["classes"]) for gt in case["gt"]]


def head_output(logits: list[Tensor], boxes: list[Tensor], quality: list[Tensor] | None = None) -> HeadOutput:
    """What a head gives that predicts these maps; no quality if there are none."""
    return HeadOutput(
        RowValues.of_maps(logits), RowValues.of_maps(boxes), RowValues.of_maps(quality) if quality else None
    )


def in_px(maps: list[Tensor]) -> list[Tensor]:
    """Distances in px from distances in strides, level by level."""
    return [x * stride for x, stride in zip(maps, STRIDES, strict=True)]


def per_level(table: Tensor, sizes: tuple[tuple[int, int], ...] = SCENE_SIZES) -> list[Tensor]:
    """Split (N, R) into levels, each (N * H * W,)."""
    return [part.reshape(-1) for part in table.split([h * w for h, w in sizes], dim=1)]
