"""ResNet with a feature pyramid P3..P7 for dense detectors, as in the CEASC code and its baselines.

Beyond Detectron2's ``build_retinanet_resnet_fpn_backbone`` it offers P6 from C5 or P5, no ReLU before P7, and
``MODEL.RESNETS.NORM: "FrozenStatsBN"``; and the pyramid starts from Xavier uniform weights (Detectron2's are Kaiming
uniform, which differ where a convolution changes the number of channels).
"""

from __future__ import annotations

from d2_ext.errors import ConfigError
from d2_ext.modeling.backbone import frozen_stats_norm

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, ResNet, build_resnet_backbone
from torch import Tensor, nn


class TopBlockP6P7(nn.Module):
    """Two stride-2 convolutions above a pyramid.

    Args:
        in_channels: channels of the input.
        out_channels: channels of P6 and P7.
        in_feature: ``"res5"`` for C5, or the last pyramid level, e.g. ``"p5"``.
        relu: apply a ReLU to P6 before P7 is computed from it.

    Attributes:
        num_levels, in_feature: what Detectron2's ``FPN`` reads.
    """

    def __init__(self, *, in_channels: int, out_channels: int, in_feature: str = "res5", relu: bool = True) -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.relu = relu
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute P6 and P7 from the input map (N, C, H, W)."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


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
    top_block = TopBlockP6P7(
        in_channels=in_channels, out_channels=fpn.OUT_CHANNELS, in_feature=fpn.P6_IN_FEATURE, relu=fpn.P7_RELU
    )
    backbone = FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )
    init_pyramid(backbone)
    return backbone


def init_pyramid(backbone: FPN) -> None:
    """Start the convolutions of a pyramid, but not of its bottom-up network, from Xavier uniform and zero bias."""
    for name, child in backbone.named_children():
        if name == "bottom_up":
            continue
        for conv in child.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)


def _build_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet, which also understands the norm ``FrozenStatsBN``."""
    if cfg.MODEL.RESNETS.NORM != frozen_stats_norm.NAME:
        return build_resnet_backbone(cfg, input_shape)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM = "BN"
    # The stages below FREEZE_AT have become FrozenBN in there; the others keep a trainable affine part.
    return frozen_stats_norm.freeze_statistics(build_resnet_backbone(cfg, input_shape))
