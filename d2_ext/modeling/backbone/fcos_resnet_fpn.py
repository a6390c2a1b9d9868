"""ResNet with the pyramid of FCOS: extra levels come from P5, and deformable stages run without a compiler.

Papers: FPN, arXiv:1612.03144; Deformable ConvNets v2, arXiv:1811.11168.
Differs from Detectron2's ``DeformBottleneckBlock``: torchvision's operator, which also works on the CPU; the state-dict
names are the same.
"""

from __future__ import annotations

from d2_ext.errors import ConfigError

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

TAPS = 9  # of a 3x3 kernel


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
        self.num_offsets = 2 * TAPS * num_groups
        self.shortcut = block.shortcut
        self.conv1 = block.conv1
        self.conv2_offset = Conv2d(
            block.conv2.in_channels,
            self.num_offsets + (TAPS * num_groups if modulated else 0),
            kernel_size=3,
            stride=block.conv2.stride,
            padding=block.conv2.padding,
            dilation=block.conv2.dilation,
        )
        nn.init.zeros_(self.conv2_offset.weight)  # starts as an ordinary grid
        nn.init.zeros_(self.conv2_offset.bias)
        self.conv2 = block.conv2
        self.conv3 = block.conv3

    def forward(self, x: Tensor) -> Tensor:
        """Run the block: (N, Cin, H, W) to (N, Cout, H / stride, W / stride)."""
        out = F.relu(self.conv1(x))
        out = F.relu(self._deformed(out))
        return F.relu(self.conv3(out) + (x if self.shortcut is None else self.shortcut(x)))

    def _deformed(self, x: Tensor) -> Tensor:
        conv = self.conv2
        prediction = self.conv2_offset(x)
        kind = conv.weight.dtype  # the operator knows no autocast: all its inputs need one type
        mask = prediction[:, self.num_offsets :].sigmoid().to(kind) if self.modulated else None
        out = deform_conv2d(
            x.to(kind),
            prediction[:, : self.num_offsets].to(kind),
            conv.weight,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            mask=mask,
        )
        return out if conv.norm is None else conv.norm(out)


class TopBlockP6(nn.Module):
    """One stride-2 convolution above the last pyramid level.

    Attributes:
        num_levels, in_feature: what Detectron2's ``FPN`` reads.
    """

    def __init__(self, channels: int, in_feature: str) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        nn.init.kaiming_uniform_(self.p6.weight, a=1)
        nn.init.zeros_(self.p6.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute P6 from P5."""
        return [self.p6(x)]


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build ResNet and FPN with ``MODEL.FCOS.TOP_LEVELS`` more levels from the last one.

    ``MODEL.RESNETS.DEFORM_*`` choose deformable stages.

    Raises:
        ConfigError: a number of levels other than 0, 1, 2, or deformable stages in a ResNet without bottlenecks.
    """
    levels, fpn = cfg.MODEL.FCOS.TOP_LEVELS, cfg.MODEL.FPN
    if levels not in (0, 1, 2):
        raise ConfigError(f"MODEL.FCOS.TOP_LEVELS is {levels}; expected 0, 1 (P6) or 2 (P6 and P7).")
    bottom_up = _build_resnet(cfg, input_shape)
    last = f"p{fpn.IN_FEATURES[-1].removeprefix('res')}"
    top_block = None
    if levels == 1:
        top_block = TopBlockP6(fpn.OUT_CHANNELS, last)
    elif levels == 2:
        top_block = LastLevelP6P7(fpn.OUT_CHANNELS, fpn.OUT_CHANNELS, in_feature=last)
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )


def _build_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet, with the blocks of deformable stages replaced."""
    resnets = cfg.MODEL.RESNETS
    if not any(resnets.DEFORM_ON_PER_STAGE):
        return build_resnet_backbone(cfg, input_shape)
    if resnets.DEPTH < 50:
        raise ConfigError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {resnets.DEFORM_ON_PER_STAGE} with DEPTH {resnets.DEPTH}: only "
            "bottleneck blocks can be deformable, which begin at depth 50."
        )
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    resnet = build_resnet_backbone(plain, input_shape)
    for stage, deform in zip(resnet.stages, resnets.DEFORM_ON_PER_STAGE):
        for index in range(len(stage) if deform else 0):
            stage[index] = DeformBottleneck(
                stage[index], modulated=resnets.DEFORM_MODULATED, num_groups=resnets.DEFORM_NUM_GROUPS
            )
    return resnet
