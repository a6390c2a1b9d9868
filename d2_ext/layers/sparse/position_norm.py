"""Layer normalization of each position over its own channels: a norm that asks nothing of other positions.

CE-GN takes its statistics from another map than the one that it normalizes, and a loss pulls its result towards that of
ordinary group normalization. This one normalizes what the convolution gave at a position, by nothing else: there is no
second result to be near to, and inference needs no statistics of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2_ext.layers.sparse.context_norm import FeatureMoments, GroupStatistics, at_least_float32

import torch.nn.functional as F
from torch import Tensor, nn


class PositionNorm(nn.Module):
    """Layer normalization (arXiv:1607.06450) over the channels of each position, with scale and offset per channel.

    It stands where ``ContextGroupNorm`` does, and has its methods; its statistics are empty. Its keys in a checkpoint
    differ from those of CE-GN (``norm.channels.weight``), so that one is not loaded for the other.

    Args:
        num_channels: C.
        eps: added to the variance.
    """

    reads_context = False

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = nn.LayerNorm(num_channels, eps)

    def statistics(self, context: Tensor) -> GroupStatistics:
        """None are needed."""
        return GroupStatistics(context.new_empty(0), context.new_empty(0))

    def statistics_after(self, weight: Tensor, bias: Tensor, moments: Sequence[FeatureMoments]) -> GroupStatistics:
        """None are needed."""
        return self.statistics(weight)

    def after(self, conv: nn.Conv2d, x: Tensor, statistics: GroupStatistics) -> Tensor:
        """Convolve a map (1, C, H, W) and normalize."""
        return self(F.conv2d(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype), padding=conv.padding), statistics)

    def epilogue(self, statistics: GroupStatistics, segment: Tensor, context: Tensor) -> PositionEpilogue:
        """What follows a convolution at n active rows, whose rows of G (n, C) are given."""
        return PositionEpilogue(self.channels, context)

    def forward(self, x: Tensor, statistics: GroupStatistics) -> Tensor:
        """Normalize a map (N, C, H, W); the result is float32, or float64 if the map is."""
        return normalize_channels(x.permute(0, 2, 3, 1), self.channels).permute(0, 3, 1, 2)


def normalize_channels(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer normalization over the last dimension, in float32 or float64."""
    x, weight, bias = (at_least_float32(v) for v in (x, norm.weight, norm.bias))
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


@dataclass(frozen=True)
class PositionEpilogue:
    """What follows a layer's convolution at n active rows: normalize each row, add G, and clip at zero.

    Attributes:
        norm: of the layer.
        context: G at each row, (n, C).
    """

    norm: nn.LayerNorm
    context: Tensor

    def __call__(self, y: Tensor, part: slice) -> Tensor:
        """Finish the convolution's output at some of the rows."""
        return normalize_channels(y, self.norm).add_(self.context[part]).relu_().to(self.context.dtype)
