"""MogaNet: convolutional backbones with multi-order gated aggregation.

Paper: MogaNet: Multi-order Gated Aggregation Network (arXiv:2211.03295), section 4.
Checked against: outputs, parameter counts and names of the authors' repository, whose code differs from the paper's
figure: the gated aggregation has an inner shortcut that adds the *normalized* input, and its activations are SiLU.
Differs: the detection form is initialized like the classifier (the published one keeps PyTorch's defaults); frozen
stages are really frozen; unknown options are errors.

Shapes: a block maps (N, C, H, W) to the same, C a multiple of 8; hidden maps of its FFN are (N, C * ratio, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.layers.blocks import BlockSequence
from d2_ext.layers.drop_path import DropPath, linear_drop_rates
from d2_ext.layers.norms import NormSpec, make_norm
from d2_ext.modeling.backbone.trunk import Trunk

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn


@dataclass(frozen=True)
class MogaNetSpec:
    """Sizes of one architecture, per stage: channels, blocks, and hidden channels of the FFN per channel."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    ffn_ratios: tuple[int, int, int, int] = (8, 8, 4, 4)


MOGANET_SPECS: Mapping[str, MogaNetSpec] = MappingProxyType(
    {
        "xtiny": MogaNetSpec((32, 64, 96, 192), (3, 3, 10, 2)),
        "tiny": MogaNetSpec((32, 64, 128, 256), (3, 3, 12, 2)),
        "small": MogaNetSpec((64, 128, 320, 512), (2, 3, 12, 2)),
        "base": MogaNetSpec((64, 160, 320, 512), (4, 6, 22, 3)),
        "large": MogaNetSpec((64, 160, 320, 640), (4, 6, 44, 4)),
        "xlarge": MogaNetSpec((96, 192, 480, 960), (6, 6, 44, 4)),
    }
)


class ChannelScale(nn.Module):
    """A learned factor per channel, (1, C, 1, 1)."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class MultiOrderDepthwise(nn.Module):
    """Depthwise convolutions of growing dilation on slices of 1/8, 3/8 and 1/2 of the channels (paper, Eq. 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slices = (channels - channels * 3 // 8 - channels // 2, channels * 3 // 8, channels // 2)
        _, middle, high = self.slices
        self.DW_conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.DW_conv1 = nn.Conv2d(middle, middle, 5, padding=4, dilation=2, groups=middle)
        self.DW_conv2 = nn.Conv2d(high, high, 7, padding=9, dilation=3, groups=high)
        self.PW_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, middle, high = self.DW_conv0(x).split(self.slices, dim=1)
        return self.PW_conv(torch.cat([low, self.DW_conv1(middle), self.DW_conv2(high)], dim=1))


class GatedAggregation(nn.Module):
    """Spatial aggregation: feature decomposition, then a gate times multi-order context, plus the input.

    Args:
        channels: C.
        scale_init: start of the decomposition's factor.
        double_silu: apply the activation of gate and context twice, as the weights trained with the reference's
            ``attn_force_fp32`` (those of OpenMixup) need it. It is another function, not another precision.
    """

    def __init__(self, channels: int, *, scale_init: float, double_silu: bool) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.value = MultiOrderDepthwise(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)
        self.sigma = ChannelScale(channels, scale_init)
        self.double_silu = double_silu

    def forward(self, x: Tensor) -> Tensor:
        a = self.proj_1(x)
        a = F.silu(a + self.sigma(a - a.mean(dim=(2, 3), keepdim=True)))  # Eq. 4
        gate, value = F.silu(self.gate(a)), F.silu(self.value(a))
        if self.double_silu:
            gate, value = F.silu(gate), F.silu(value)
        return self.proj_2(gate * value) + x  # Eq. 6


class ChannelAggregationFFN(nn.Module):
    """Feed-forward part with a 3x3 depthwise convolution and channel aggregation (paper, Eq. 8)."""

    def __init__(self, channels: int, hidden: int, *, scale_init: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.decompose = nn.Conv2d(hidden, 1, 1)
        self.sigma = ChannelScale(hidden, scale_init)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.dwconv(self.fc1(x)))  # the exact GELU: its tanh form is off by 1e-4
        h = h + self.sigma(h - F.gelu(self.decompose(h)))
        return self.fc2(h)


class MogaBlock(nn.Module):
    """Gated aggregation and channel aggregation, each behind a norm, a layer scale and stochastic depth."""

    def __init__(
        self, channels: int, ffn_ratio: int, *, norm: NormSpec, drop_path: float, scale_init: float, double_silu: bool
    ) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((1, channels, 1, 1), scale_init))
        self.layer_scale_2 = nn.Parameter(torch.full((1, channels, 1, 1), scale_init))
        self.norm1: Any = make_norm(norm, channels)
        self.attn = GatedAggregation(channels, scale_init=scale_init, double_silu=double_silu)
        self.drop_path = DropPath(drop_path)
        self.norm2: Any = make_norm(norm, channels)
        self.mlp = ChannelAggregationFFN(channels, channels * ffn_ratio, scale_init=scale_init)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(x)))


class StemEmbedding(nn.Module):
    """Two 3x3 convolutions of stride 2 with norms and one GELU between them."""

    def __init__(self, in_channels: int, channels: int, norm: NormSpec) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1),
            make_norm(norm, channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            make_norm(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


class PatchEmbedding(nn.Module):
    """A 3x3 convolution of stride 2 and a norm."""

    foldable = (("projection", "norm"),)

    def __init__(self, in_channels: int, channels: int, norm: NormSpec) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm: Any = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.projection(x))


class MogaNet(Trunk):
    """MogaNet; features ``stage1`` to ``stage4`` (strides 4, 8, 16, 32) and ``stem``, the first embedding (stride 4).

    The norm behind a stage is in the main path: its output is the feature and the input of the next stage.

    Args:
        arch: a name in ``MOGANET_SPECS``, or a spec.
        in_channels: channels of the images.
        norm: see ``make_norm``; the published detectors train their batch norms (``"BN"``).
        out_features: features to return; stages behind the last one are not built.
        freeze_at: number of leading parts to freeze: 1 the first embedding, 2 all of stage1, ...
        drop_path_rate: stochastic depth of the last block; linear from 0 for the first block.
        scale_init: start of the layer scales and of the decomposition factors.
        double_silu: see ``GatedAggregation``.
        recompute: recompute the blocks' activations in the backward pass to save memory.
        num_classes: adds a classifier and its feature ``logits``.

    Raises:
        ConfigError: for an unknown architecture, norm or feature.
    """

    @configurable
    def __init__(
        self,
        *,
        arch: str | MogaNetSpec = "tiny",
        in_channels: int = 3,
        norm: NormSpec = "BN",
        out_features: Sequence[str] = ("stage1", "stage2", "stage3", "stage4"),
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        scale_init: float = 1e-5,
        double_silu: bool = False,
        recompute: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(arch, str) and arch not in MOGANET_SPECS:
            raise ConfigError(f"MODEL.MOGANET.ARCH: no architecture {arch!r}. {did_you_mean(arch, MOGANET_SPECS)}")
        if norm in ("", None):
            raise ConfigError(
                "MODEL.MOGANET.NORM is empty, but MogaNet has norms in its main path. Use 'BN' or another."
            )
        spec = MOGANET_SPECS[arch] if isinstance(arch, str) else arch
        wanted = self.wanted_parts(out_features, num_classes)
        rates = linear_drop_rates(drop_path_rate, sum(spec.depths))
        options: dict[str, Any] = {"norm": norm, "scale_init": scale_init, "double_silu": double_silu}
        self.patch_embed1 = StemEmbedding(in_channels, spec.dims[0], norm)
        self._add_part("stem", ["patch_embed1"], channels=spec.dims[0], stride=4)
        for i, part in enumerate(wanted[1:], start=1):
            width, ratio, first = spec.dims[i - 1], spec.ffn_ratios[i - 1], sum(spec.depths[: i - 1])
            if i > 1:
                setattr(self, f"patch_embed{i}", PatchEmbedding(spec.dims[i - 2], width, norm))
            stage_rates = rates[first : first + spec.depths[i - 1]]
            blocks = [MogaBlock(width, ratio, drop_path=rate, **options) for rate in stage_rates]
            setattr(self, f"blocks{i}", BlockSequence(blocks, recompute=recompute))
            setattr(self, f"norm{i}", make_norm(norm, width))
            attributes = [f"blocks{i}", f"norm{i}"] if i == 1 else [f"patch_embed{i}", f"blocks{i}", f"norm{i}"]
            self._add_part(part, attributes, channels=width, stride=2 ** (i + 1))
        if "logits" in out_features and num_classes is not None:
            self._add_classifier("head", num_classes)
        self._finish(out_features, num_classes)
        # N(0, sqrt(2 / fan-out)) for convolutions, whose fan-out counts one group; zero biases; 0.02 for the head.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read ``MODEL.MOGANET`` and ``MODEL.BACKBONE.FREEZE_AT``."""
        node = cfg.MODEL.MOGANET
        return {
            "arch": node.ARCH,
            "in_channels": 3 if input_shape is None or input_shape.channels is None else input_shape.channels,
            "norm": node.NORM,
            "out_features": node.OUT_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "drop_path_rate": node.DROP_PATH_RATE,
            "scale_init": node.SCALE_INIT,
            "double_silu": node.DOUBLE_SILU,
            "recompute": node.RECOMPUTE,
        }

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        return ("stem", "stage1", "stage2", "stage3", "stage4")
