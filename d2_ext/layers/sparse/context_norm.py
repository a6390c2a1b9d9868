"""Group normalization with the statistics of a context map (CE-GN of CEASC, arXiv:2303.14488).

A sparse convolution sees only the active positions, so the statistics of its own output say little about the image.
CE-GN takes them from a cheap dense map instead: the point-wise convolution of the features.

Checked against: the authors' released code at commit 2abfd1a. Its variance is the unbiased one (divisor n - 1), unlike
that of ordinary group normalization; ``unbiased=False`` gives the ordinary one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.linear import gram, row_linear

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENT_ROWS = 8192  # positions whose moments are taken at a time


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


class GroupStatistics(NamedTuple):
    """Mean and reciprocal standard deviation of each segment's channel groups, float32 (S, groups)."""

    mean: Tensor
    rstd: Tensor

    @classmethod
    def join(cls, parts: Sequence[GroupStatistics]) -> GroupStatistics:
        """Statistics of all segments, from those of consecutive ones."""
        return cls(torch.cat([part.mean for part in parts]), torch.cat([part.rstd for part in parts]))


def group_statistics(context: Tensor, num_groups: int, *, eps: float, unbiased: bool) -> GroupStatistics:
    """Statistics of a context map, per image and group of channels, over all positions.

    Args:
        context: (N, H*W, C), channels last.
        num_groups: groups of neighboring channels; divides C.
        eps: added to the variance.
        unbiased: divide by the number of elements minus one. A group of a single element has variance 0.

    Returns:
        Two tensors (N, num_groups), float32 unless the context is float64.
    """
    num_images, num_positions, channels = context.shape
    groups = at_least_float32(context).reshape(num_images, num_positions, num_groups, -1)
    single = num_positions * channels == num_groups
    var, mean = torch.var_mean(groups, dim=(1, 3), correction=1 if unbiased and not single else 0)
    return GroupStatistics(mean, torch.rsqrt(var + eps))


class FeatureMoments(NamedTuple):
    """What the statistics of every point-wise convolution of a segment's features follow from.

    With the features' mean m and their scatter S, the sum of (x - m)(x - m)^T over the positions, a channel w.x + b has
    the mean w.m + b and the sum of squared distances w.S.w. So a convolution whose statistics alone are wanted need not
    be computed; towers that read the same features share their moments.

    Attributes:
        positions: their number.
        mean: (C,).
        scatter: (C, C); None where there are no more positions than channels.
        offsets: in its place the rows x - m, (n, C): a product with them is no more work than one with the scatter.
    """

    positions: int
    mean: Tensor
    scatter: Tensor | None
    offsets: Tensor | None

    @classmethod
    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def of(cls, rows: Tensor) -> FeatureMoments:
        """Moments of rows (n, C), float32 or float64, without gradient; no large sums are subtracted."""
        mean = rows.mean(0, dtype=rows.dtype if rows.dtype == torch.float64 else torch.float32)
        if len(rows) <= rows.shape[1]:
            return cls(len(rows), mean, None, rows - mean)
        scatter = mean.new_zeros((len(mean), len(mean)))
        memory = mean.new_empty((MOMENT_ROWS, len(mean)))  # pieces stay in the cache
        for piece in rows.split(MOMENT_ROWS):
            scatter += gram(torch.sub(piece, mean, out=memory[: len(piece)]))
        return cls(len(rows), mean, scatter, None)

    def squares(self, weight: Tensor) -> Tensor:
        """Sums of squared distances from their means, of the channels of a point-wise weight (C', C): (C',)."""
        if self.offsets is not None:
            return row_linear(self.offsets, weight, None).square().sum(0)
        assert self.scatter is not None
        return (row_linear(weight, self.scatter, None) * weight).sum(1)


class ContextGroupNorm(nn.GroupNorm):
    """Group normalization whose mean and variance are given, with its own scale and offset per channel.

    It is a ``GroupNorm`` to optimizers: scale and offset have the weight decay of norms (``SOLVER.WEIGHT_DECAY_NORM``).

    Args:
        num_channels: C.
        num_groups: divides C.
        eps: added to the variance.
        unbiased: see ``group_statistics``.

    Raises:
        ConfigError: if ``num_groups`` does not divide ``num_channels``.
    """

    reads_context = True

    def __init__(self, *, num_channels: int, num_groups: int = 32, eps: float = 1e-5, unbiased: bool = True) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ConfigError(
                f"CE-GN: {num_channels} channels cannot be split into {num_groups} groups of equal size. Set "
                "MODEL.CEASC.NORM_GROUPS to a divisor of the tower's channels (MODEL.FPN.OUT_CHANNELS)."
            )
        super().__init__(num_groups, num_channels, eps)
        self.unbiased = unbiased

    def statistics(self, context: Tensor) -> GroupStatistics:
        """Statistics of a context map (N, H*W, C); they are the same for all layers of one tower."""
        return group_statistics(context, self.num_groups, eps=self.eps, unbiased=self.unbiased)

    @torch.autocast("cpu", enabled=False)
    def statistics_after(self, weight: Tensor, bias: Tensor, moments: Sequence[FeatureMoments]) -> GroupStatistics:
        """Statistics of a point-wise convolution from the moments of the features, equal to rounding.

        Args:
            weight: of the convolution, (C', C).
            bias: (C',).
            moments: of the S segments.

        Returns:
            Two tensors (S, num_groups), float32 unless the moments are float64.
        """
        dtype = moments[0].mean.dtype
        weight, bias = weight.to(dtype), bias.to(dtype)
        means = torch.stack([m.mean for m in moments]) @ weight.T + bias  # (S, C')
        squares = torch.stack([m.squares(weight) for m in moments])
        means, squares = (v.double().unflatten(1, (self.num_groups, -1)) for v in (means, squares))
        mean = means.mean(2)
        positions = torch.tensor([[m.positions] for m in moments], dtype=torch.float64)
        number = positions * means.shape[2]
        total = squares.sum(2) + positions * (means - mean[..., None]).square().sum(2)
        var = total.clamp_min(0) / (number - 1 if self.unbiased else number).clamp_min(1)
        return GroupStatistics(mean.to(dtype), torch.rsqrt(var + self.eps).to(dtype))

    def scale_and_shift(self, statistics: GroupStatistics) -> tuple[Tensor, Tensor]:
        """Fold statistics, scale and offset into ``scale * x + shift``: two tensors (S, C), float32."""
        repeats = len(self.weight) // self.num_groups
        mean, rstd = (x.repeat_interleave(repeats, dim=1) for x in statistics)
        scale = rstd * at_least_float32(self.weight)
        return scale, at_least_float32(self.bias) - mean * scale

    def after(self, conv: nn.Conv2d, x: Tensor, statistics: GroupStatistics) -> Tensor:
        """Convolve a map (1, C, H, W) and normalize; the convolution takes over factors and offsets."""
        scale, shift = (v[0] for v in self.scale_and_shift(statistics))
        weight, bias = conv.weight * scale[:, None, None, None], conv.bias * scale + shift
        return at_least_float32(F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=conv.padding))

    def epilogue(self, statistics: GroupStatistics, segment: Tensor, context: Tensor) -> Epilogue:
        """What follows a convolution at n active rows, whose segments (n,) and rows of G (n, C) are given."""
        return Epilogue(*self.scale_and_shift(statistics), segment, context)

    def forward(self, x: Tensor, statistics: GroupStatistics) -> Tensor:
        """Normalize a map (N, C, H, W) with the given statistics; the result is float32."""
        scale, shift = self.scale_and_shift(statistics)
        return x * scale[:, :, None, None] + shift[:, :, None, None]

    def ordinary(self, x: Tensor) -> Tensor:
        """Ordinary group normalization of x (N, C, H, W), by its own statistics, with this layer's scale and offset."""
        # not F.group_norm, which refuses a map of one position; torch computes it (variance 0)
        x, weight, bias = (at_least_float32(v) for v in (x, self.weight, self.bias))
        return torch.group_norm(x, self.num_groups, weight, bias, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, unbiased={self.unbiased}"


@dataclass(frozen=True)
class Epilogue:
    """What follows a layer's convolution at n active rows: normalize, add G, and clip at zero.

    Attributes:
        scale, shift: of CE-GN, by segment (S, C).
        segment: of each row (n,), ascending.
        context: G at each row, (n, C).
    """

    scale: Tensor
    shift: Tensor
    segment: Tensor
    context: Tensor

    def __call__(self, y: Tensor, part: slice) -> Tensor:
        """Finish the convolution's output at some of the rows, which is overwritten."""
        number = self.segment[part]
        y = at_least_float32(y)
        if number.device.type == "cpu":
            # The rows of a segment lie side by side and need no table of its values.
            segments, counts = number.unique_consecutive(return_counts=True)
            for run, rows in zip(segments.tolist(), y.split(counts.tolist())):
                torch.addcmul(self.shift[run], rows, self.scale[run], out=rows)
        else:
            torch.addcmul(self.shift[number], y, self.scale[number], out=y)
        return y.add_(self.context[part]).relu_().to(self.context.dtype)
