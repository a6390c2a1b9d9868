"""Deformable convolutions (arXiv:1703.06211, arXiv:1811.11168) on ``torchvision.ops.deform_conv2d``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

__all__ = ["DeformConv", "ModulatedDeformConv"]

Size = int | tuple[int, int]


class _DeformableConv(nn.Module):
    """What the two have in common: arguments, weights, norm and activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        groups: int,
        deformable_groups: int,
        bias: bool,
        norm: nn.Module | None,
        activation: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        for name, channels in {"in_channels": in_channels, "out_channels": out_channels}.items():
            assert channels % groups == 0, f"{name} ({channels}) must be a multiple of groups ({groups})."
        self.in_channels, self.out_channels = in_channels, out_channels
        self.groups, self.deformable_groups = groups, deformable_groups
        self.kernel_size, self.stride, self.padding, self.dilation = map(
            _pair, (kernel_size, stride, padding, dilation)
        )
        self.norm, self.activation = norm, activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        if x.numel() == 0:
            return x.new_empty(self._output_shape(x)) + 0 * x.sum()
        x = deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def _output_shape(self, x: Tensor) -> list[int]:
        sizes = zip(x.shape[-2:], self.padding, self.dilation, self.kernel_size, self.stride)
        return [x.shape[0], self.out_channels, *((i + 2 * p - (d * (k - 1) + 1)) // s + 1 for i, p, d, k, s in sizes)]

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the norm."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        more = f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        return f"{sizes}, {more}, deformable_groups={self.deformable_groups}, bias={self.bias is not None}"


class DeformConv(_DeformableConv):
    """Convolution whose kernel points are shifted at each location.

    The groups of the weights follow from their shape, those of the offsets from the number of offset channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take the arguments of ``Conv2d`` and ``deformable_groups``, groups of input channels with equal offsets.

        Raises:
            AssertionError: if ``bias``, which this layer has not.
        """
        assert not bias, "DeformConv has no bias."
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deformable_groups, bias, norm,
            activation,
        )  # fmt: skip

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W').

        Args:
            x: input.
            offset: (N, 2 * deformable_groups * kh * kw, H', W'), y and x of each kernel point in cells of the input.
        """
        return self._convolve(x, offset, None)


class ModulatedDeformConv(_DeformableConv):
    """``DeformConv`` whose kernel points are also weighted at each location."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take the arguments of ``Conv2d`` and ``deformable_groups``, groups of input channels with equal offsets."""
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deformable_groups, bias, norm,
            activation,
        )  # fmt: skip
        self.with_bias = bias

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W').

        Args:
            x: input.
            offset: (N, 2 * deformable_groups * kh * kw, H', W'), y and x of each kernel point in cells of the input.
            mask: (N, deformable_groups * kh * kw, H', W'), weight of each kernel point, usually in [0, 1].
        """
        return self._convolve(x, offset, mask)
