"""Backbones: image in, feature maps out."""

from detectron2._missing import refuse
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)

__all__ = [
    "BACKBONE_REGISTRY", "FPN", "Backbone", "BasicStem", "BottleneckBlock", "ResNet", "ResNetBlockBase",
    "build_backbone", "build_resnet_backbone", "make_stage",
]  # fmt: skip

__getattr__ = refuse(__name__, "MViT RegNet SimpleFeaturePyramid SwinTransformer ViT get_vit_lr_decay_rate")
