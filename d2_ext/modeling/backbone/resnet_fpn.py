"""ResNet with feature pyramids for dense detectors.

Papers: FPN, arXiv:1612.03144; Deformable ConvNets v2, arXiv:1811.11168.
Differs from Detectron2's builders: P6 and P7 come from C5 or from P5, with or without a ReLU between them (the CEASC
code and its baselines; FCOS); ``MODEL.RESNETS.NORM: "FrozenStatsBN"``; deformable stages run on torchvision's operator,
which also works on the CPU, with the same state-dict names.
"""

from __future__ import annotations

from d2_ext.errors import ConfigError
from d2_ext.layers.deform import deform_conv, no_offsets, offset_channels
from d2_ext.modeling.backbone import frozen_stats_norm
from d2_ext.modeling.backbone.level_fpn import TopBlock, levels_above

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn


class DeformBottleneck(CNNBlockBase):
    """A bottleneck block whose 3x3 convolution samples where another convolution tells it to.

    Args:
        block: the plain block; its layers are taken over.
        modulated: also weigh each sample by a number in 0..1 (version 2).
        num_groups: groups of channels with their own offsets.
    """

    def __init__(self, block: BottleneckBlock, *, modulated: bool, num_groups: int) -> None:
        super().__init__(block.in_channels, block.out_channels, block.stride)
        self.modulated = modulated
        self.shortcut = block.shortcut
        self.conv1 = block.conv1
        self.conv2_offset = Conv2d(
            block.conv2.in_channels,
            offset_channels(num_groups, modulated=modulated),
            kernel_size=3,
            stride=block.conv2.stride,
            padding=block.conv2.padding,
            dilation=block.conv2.dilation,
        )
        no_offsets(self.conv2_offset)
        self.conv2 = block.conv2
        self.conv3 = block.conv3

    def forward(self, x: Tensor) -> Tensor:
        """Run the block: (N, Cin, H, W) to (N, Cout, H / stride, W / stride)."""
        out = F.relu(self.conv1(x))
        out = deform_conv(self.conv2, out, self.conv2_offset(out), modulated=self.modulated)
        out = F.relu(out if self.conv2.norm is None else self.conv2.norm(out))
        return F.relu(self.conv3(out) + (x if self.shortcut is None else self.shortcut(x)))


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the backbone from ``MODEL.RESNETS`` and ``MODEL.FPN``.

    Raises:
        ConfigError: if ``MODEL.FPN.P6_IN_FEATURE`` is neither res5 nor the last pyramid output.
    """
    bottom_up = _build_resnet(cfg, input_shape)
    shapes = bottom_up.output_shape()
    fpn = cfg.MODEL.FPN
    last_output = f"p{fpn.IN_FEATURES[-1].removeprefix('res')}"
    if fpn.P6_IN_FEATURE not in ("res5", last_output) or (fpn.P6_IN_FEATURE == "res5" and "res5" not in shapes):
        raise ConfigError(
            f"MODEL.FPN.P6_IN_FEATURE is {fpn.P6_IN_FEATURE!r}; expected 'res5', which must be in "
            f"MODEL.RESNETS.OUT_FEATURES {list(shapes)}, or the last pyramid output {last_output!r}."
        )
    in_channels = shapes["res5"].channels if fpn.P6_IN_FEATURE == "res5" else fpn.OUT_CHANNELS
    top_block = TopBlock(in_channels, fpn.OUT_CHANNELS, levels=2, in_feature=fpn.P6_IN_FEATURE, relu=fpn.P7_RELU)
    backbone = _fpn(cfg, bottom_up, top_block)
    # Xavier uniform, as in the CEASC code; Detectron2's Kaiming uniform differs where channels change.
    for name, child in backbone.named_children():
        for conv in child.modules() if name != "bottom_up" else ():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
    return backbone


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build ResNet and FPN with ``MODEL.FPN.TOP_LEVELS`` more levels from the last one.

    Raises:
        ConfigError: a number of levels other than 0, 1, 2.
    """
    bottom_up = _build_resnet(cfg, input_shape)
    return _fpn(cfg, bottom_up, levels_above(cfg, f"p{cfg.MODEL.FPN.IN_FEATURES[-1].removeprefix('res')}"))


def _fpn(cfg: CfgNode, bottom_up: ResNet, top_block: TopBlock | None) -> FPN:
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )


def _build_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet, which also understands the norm ``FrozenStatsBN`` and has our deformable blocks.

    Raises:
        ConfigError: deformable stages in a ResNet without bottlenecks.
    """
    resnets = cfg.MODEL.RESNETS
    deform, frozen = resnets.DEFORM_ON_PER_STAGE, resnets.NORM == frozen_stats_norm.NAME
    if any(deform) and resnets.DEPTH < 50:
        raise ConfigError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {deform} with DEPTH {resnets.DEPTH}: only bottleneck blocks can be "
            "deformable, which begin at depth 50."
        )
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    plain.MODEL.RESNETS.NORM = "BN" if frozen else resnets.NORM
    resnet = build_resnet_backbone(plain, input_shape)
    for stage, is_deformable in zip(resnet.stages, deform):
        for index in range(len(stage) if is_deformable else 0):
            stage[index] = DeformBottleneck(
                stage[index], modulated=resnets.DEFORM_MODULATED, num_groups=resnets.DEFORM_NUM_GROUPS
            )
    # The stages below FREEZE_AT have become FrozenBN in there; the others keep a trainable affine part.
    return frozen_stats_norm.freeze_statistics(resnet) if frozen else resnet
