"""DetNet-59: a ResNet-50 whose last stages keep stride 16 by dilation, with one stage more.

Paper: DetNet: A Backbone network for Object Detection (arXiv:1804.06215), section 3 and figure 2.
Checked against: outputs, parameter counts and names of DetNet_pytorch (the widest used port).
Reading of the paper: 256 is the *inner* width of stages 5 and 6 and their output stays 1024, which alone gives the
paper's 4.8 GFLOPs; ``narrow`` gives the other reading, in which 256 is the output.
Differs: the convolutions are initialized with fan-out Kaiming; the weights of DetNet_pytorch need the stride in the
3x3 convolution, which is the default here, while the paper's FLOPs say that its authors had it in the first 1x1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from d2_ext.layers.blocks import BlockSequence
from d2_ext.layers.norms import NormSpec, make_norm
from d2_ext.modeling.backbone.trunk import Trunk

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn

STEM_CHANNELS = 64


@dataclass(frozen=True)
class StageSpec:
    """One stage of bottlenecks.

    Attributes:
        blocks: number of bottlenecks.
        width: channels inside a bottleneck.
        channels: channels of the output.
        stride: of the first block.
        dilation: of every 3x3 convolution.
        project: the first block's shortcut has a convolution even if the shapes agree (the paper's block B).
    """

    blocks: int
    width: int
    channels: int
    stride: int = 1
    dilation: int = 1
    project: bool = False


_DILATED = StageSpec(3, 256, 1024, dilation=2, project=True)

DETNET_59: Mapping[str, StageSpec] = MappingProxyType(
    {
        "stage2": StageSpec(3, 64, 256),
        "stage3": StageSpec(4, 128, 512, stride=2),
        "stage4": StageSpec(6, 256, 1024, stride=2),
        "stage5": _DILATED,
        "stage6": _DILATED,
    }
)
DETNET_59_NARROW: Mapping[str, StageSpec] = MappingProxyType(
    {**DETNET_59, **{name: replace(_DILATED, channels=256) for name in ("stage5", "stage6")}}
)


class DetNetStem(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU and a 3x3 max-pool of stride 2: stride 4 in all."""

    def __init__(self, in_channels: int, norm: NormSpec) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, STEM_CHANNELS, 7, norm, stride=2, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), 3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut, and a ReLU behind the sum.

    Args:
        in_channels: channels of the input.
        spec: sizes of the stage.
        norm: see ``make_norm``.
        first: this is the stage's first block, which has its stride and may project its shortcut.
        stride_in_1x1: the stride is in the first convolution instead of the 3x3 one.
    """

    def __init__(self, in_channels: int, spec: StageSpec, norm: NormSpec, *, first: bool, stride_in_1x1: bool) -> None:
        super().__init__()
        stride = spec.stride if first else 1
        stride1, stride3 = (stride, 1) if stride_in_1x1 else (1, stride)
        project = first and (spec.project or in_channels != spec.channels)
        self.shortcut = _conv(in_channels, spec.channels, 1, norm, stride=stride) if project else None
        self.conv1 = _conv(in_channels, spec.width, 1, norm, stride=stride1, relu=True)
        self.conv2 = _conv(spec.width, spec.width, 3, norm, stride=stride3, dilation=spec.dilation, relu=True)
        self.conv3 = _conv(spec.width, spec.channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        return F.relu_(y + (x if self.shortcut is None else self.shortcut(x)))


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm: NormSpec,
    *,
    stride: int = 1,
    dilation: int = 1,
    relu: bool = False,
) -> Conv2d:
    """Convolution that keeps the size at stride 1, then norm; its init is N(0, sqrt(2 / (k * k * out)))."""
    norm_layer = make_norm(norm, out_channels)
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        bias=norm_layer is None,
        norm=norm_layer,
        activation=nn.ReLU(inplace=True) if relu else None,
    )
    weight_init.c2_msra_fill(conv)
    return conv


class DetNet(Trunk):
    """DetNet-59; features ``stem`` and ``stage2`` (stride 4), ``stage3`` (8), ``stage4`` to ``stage6`` (16).

    Args:
        in_channels: channels of the images.
        norm: see ``make_norm``.
        out_features: features to return; stages behind the last one are not built.
        freeze_at: number of leading parts to freeze: 1 the stem, 2 stem and stage2, ...
        narrow: 256 instead of 1024 output channels in stages 5 and 6.
        stride_in_1x1: the stride of stages 3 and 4 is in the first 1x1 convolution.
        recompute: recompute the blocks' activations in the backward pass to save memory.
        num_classes: adds a classifier and its feature ``logits``.

    Example:
        >>> {name: s.stride for name, s in DetNet(out_features=["stage3", "stage6"]).output_shape().items()}
        {'stage3': 8, 'stage6': 16}
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        norm: NormSpec = "FrozenBN",
        out_features: Sequence[str] = ("stage2", "stage3", "stage4", "stage5", "stage6"),
        freeze_at: int = 0,
        narrow: bool = False,
        stride_in_1x1: bool = False,
        recompute: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        wanted = self.wanted_parts(out_features, num_classes)
        self.stem = DetNetStem(in_channels, norm)
        self._add_part("stem", ["stem"], channels=STEM_CHANNELS, stride=4)
        for part in wanted[1:]:
            spec = (DETNET_59_NARROW if narrow else DETNET_59)[part]
            entry = self.last_shape
            blocks = [
                Bottleneck(
                    spec.channels if j else entry.channels, spec, norm, first=j == 0, stride_in_1x1=stride_in_1x1
                )
                for j in range(spec.blocks)
            ]
            setattr(self, part, BlockSequence(blocks, recompute=recompute))
            self._add_part(part, [part], channels=spec.channels, stride=entry.stride * spec.stride)
        if "logits" in out_features and num_classes is not None:
            self._add_classifier("fc", num_classes)
        self._finish(out_features, num_classes)
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read ``MODEL.DETNET`` and ``MODEL.BACKBONE.FREEZE_AT``."""
        node = cfg.MODEL.DETNET
        return {
            "in_channels": 3 if input_shape is None or input_shape.channels is None else input_shape.channels,
            "norm": node.NORM,
            "out_features": node.OUT_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "narrow": node.NARROW,
            "stride_in_1x1": node.STRIDE_IN_1X1,
            "recompute": node.RECOMPUTE,
        }

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        return ("stem", *DETNET_59)
