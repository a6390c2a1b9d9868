"""Backbones and pyramids; importing this package registers their builders."""

from d2_ext.modeling.backbone import pyramids, resnet_fpn
from d2_ext.modeling.backbone.detnet import DetNet
from d2_ext.modeling.backbone.level_fpn import LevelFPN, TopBlock
from d2_ext.modeling.backbone.moganet import MOGANET_SPECS, MogaNet, MogaNetSpec
from d2_ext.modeling.backbone.vovnet import VOVNET_SPECS, VoVNet, VoVNetSpec

__all__ = [
    "VoVNet",
    "VoVNetSpec",
    "VOVNET_SPECS",
    "DetNet",
    "MogaNet",
    "MogaNetSpec",
    "MOGANET_SPECS",
    "LevelFPN",
    "TopBlock",
]
