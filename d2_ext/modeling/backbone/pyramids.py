"""Builders of trunks and pyramids for ``MODEL.BACKBONE.NAME``.

For each of ``vovnet``, ``detnet``, ``moganet``:

==================================== ================================================================================
``build_<name>_backbone``            the trunk alone
``build_<name>_fpn_backbone``        pyramid for two-stage detectors; P6 subsamples P5 (DetNet: P6 comes from stage6)
``build_retinanet_<name>_fpn_...``   extra levels from the last feature of the trunk ("C5")
``build_fcos_<name>_fpn_...``        as many extra levels as ``MODEL.FPN.TOP_LEVELS``, from the last level ("P5")
==================================== ================================================================================

With ``MODEL.FPN.SEPARABLE`` the 3x3 convolutions of the levels are separable, of VoVNet and MogaNet.
Feature names, and so the number of levels, come from ``MODEL.FPN.IN_FEATURES``; strides come from the trunk. VoVNet and
MogaNet use Detectron2's FPN. DetNet, whose last features share stride 16, uses ``LevelFPN``; its RetinaNet form has one
extra level, so that stages 3 to 6 and P7 are five levels of strides 8, 16, 16, 16, 32.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.modeling.backbone.detnet import DetNet
from d2_ext.modeling.backbone.level_fpn import LevelFPN, TopBlock, fpn_conv, levels_above
from d2_ext.modeling.backbone.moganet import MogaNet
from d2_ext.modeling.backbone.registration import register_backbone
from d2_ext.modeling.backbone.trunk import Trunk
from d2_ext.modeling.backbone.vovnet import VoVNet

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import nn

DETNET_FPN_STYLES = ("standard", "detnet_pytorch")


@register_backbone
def build_vovnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VoVNet:
    """Build VoVNet without a pyramid."""
    return VoVNet(cfg, input_shape)


@register_backbone
def build_vovnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build VoVNet with a pyramid for two-stage detectors: P2 to P5, and P6 by subsampling P5."""
    return _fpn(cfg, VoVNet(cfg, input_shape), LastLevelMaxPool())


@register_backbone
def build_retinanet_vovnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build VoVNet with a pyramid whose P6 and P7 come from the trunk's last feature."""
    trunk = VoVNet(cfg, input_shape)
    return _fpn(cfg, trunk, _levels_from_trunk(cfg, trunk, 2))


@register_backbone
def build_fcos_vovnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build VoVNet with a pyramid whose extra levels come from P5."""
    return _fpn(cfg, VoVNet(cfg, input_shape), levels_above(cfg, "p5"))


@register_backbone
def build_moganet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MogaNet:
    """Build MogaNet without a pyramid."""
    return MogaNet(cfg, input_shape)


@register_backbone
def build_moganet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build MogaNet with a pyramid for two-stage detectors: P2 to P5, and P6 by subsampling P5."""
    return _fpn(cfg, MogaNet(cfg, input_shape), LastLevelMaxPool())


@register_backbone
def build_retinanet_moganet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build MogaNet with a pyramid whose P6 and P7 come from the trunk's last feature."""
    trunk = MogaNet(cfg, input_shape)
    return _fpn(cfg, trunk, _levels_from_trunk(cfg, trunk, 2))


@register_backbone
def build_fcos_moganet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build MogaNet with a pyramid whose extra levels come from P5."""
    return _fpn(cfg, MogaNet(cfg, input_shape), levels_above(cfg, "p5"))


@register_backbone
def build_detnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DetNet:
    """Build DetNet-59 without a pyramid."""
    return DetNet(cfg, input_shape)


@register_backbone
def build_detnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LevelFPN:
    """Build DetNet-59 with the paper's pyramid: P2 to P6 of strides 4, 8, 16, 16, 16."""
    return _detnet_fpn(cfg, DetNet(cfg, input_shape), None)


@register_backbone
def build_retinanet_detnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LevelFPN:
    """Build DetNet-59 with a pyramid and one extra level, of stride 32, from the trunk's last feature."""
    trunk = DetNet(cfg, input_shape)
    return _detnet_fpn(cfg, trunk, _levels_from_trunk(cfg, trunk, 1))


@register_backbone
def build_fcos_detnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LevelFPN:
    """Build DetNet-59 with a pyramid whose extra levels come from its last level."""
    trunk = DetNet(cfg, input_shape)
    _check_in_features(cfg, trunk)
    features = cfg.MODEL.FPN.IN_FEATURES
    first = trunk.output_shape()[features[0]].stride.bit_length() - 1
    last = f"p{first + len(features) - 1}"
    return _detnet_fpn(cfg, trunk, levels_above(cfg, last))


def _fpn(cfg: CfgNode, trunk: Trunk, top_block: nn.Module | None) -> FPN:
    _check_in_features(cfg, trunk)
    channels, norm = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM
    fpn = FPN(
        bottom_up=trunk,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=norm,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    outputs = {name: conv for name, conv in fpn.named_children() if name.startswith("fpn_output")}
    for name, conv in outputs.items() if cfg.MODEL.FPN.SEPARABLE else ():
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        weight_init.c2_xavier_fill(depthwise)
        separable = nn.Sequential(OrderedDict(dw=depthwise, pw=fpn_conv(channels, channels, 1, norm)))
        setattr(fpn, name, separable)
        if hasattr(fpn, "output_convs"):  # where Detectron2's FPN looks for them
            fpn.output_convs[fpn.output_convs.index(conv)] = separable
    return fpn


def _detnet_fpn(cfg: CfgNode, trunk: DetNet, top_block: nn.Module | None) -> LevelFPN:
    node = cfg.MODEL.DETNET
    if node.FPN_STYLE not in DETNET_FPN_STYLES:
        raise ConfigError(
            f"MODEL.DETNET.FPN_STYLE: no style {node.FPN_STYLE!r}. Known: {', '.join(DETNET_FPN_STYLES)}."
        )
    if cfg.MODEL.FPN.FUSE_TYPE != "sum":
        raise ConfigError(f"MODEL.FPN.FUSE_TYPE is {cfg.MODEL.FPN.FUSE_TYPE!r}, but DetNet's pyramid only knows 'sum'.")
    published = node.FPN_STYLE == "detnet_pytorch"
    options: dict[str, Any] = {"output_levels": (2, 3), "descend_from_outputs": True} if published else {}
    return LevelFPN(
        bottom_up=trunk,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        upsample=node.FPN_UPSAMPLE,
        **options,
    )


def _levels_from_trunk(cfg: CfgNode, trunk: Trunk, levels: int) -> nn.Module:
    """Extra levels from the last feature of the trunk; between P6 and P7 a ReLU if ``MODEL.FPN.P7_RELU``."""
    _check_in_features(cfg, trunk)
    feature = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels, width = trunk.output_shape()[feature].channels, cfg.MODEL.FPN.OUT_CHANNELS
    return TopBlock(channels, width, levels=levels, in_feature=feature, relu=cfg.MODEL.FPN.P7_RELU).xavier()


def _check_in_features(cfg: CfgNode, trunk: Trunk) -> None:
    known = list(trunk.output_shape())
    for name in cfg.MODEL.FPN.IN_FEATURES or [""]:
        if name not in known:
            raise ConfigError(
                f"MODEL.FPN.IN_FEATURES: {type(trunk).__name__} does not return {name!r}. {did_you_mean(name, known)} "
                "Name features of its OUT_FEATURES, from fine to coarse."
            )
