"""Deformable 3x3 convolutions on torchvision's operator, which also runs on the CPU, without a compiled extension.

Papers: Deformable Convolutional Networks (arXiv:1703.06211); Deformable ConvNets v2 (arXiv:1811.11168).
Differs: at initialization the modulated form multiplies by sigmoid(0) = 1/2, as the published code does; the frozen
statistics behind it fit again only when the mask has been trained.

Every user has the state-dict names of its published files, so the operator is a function, and the modules are small.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import DeformConv2d, deform_conv2d

TAPS = 9  # of a 3x3 kernel


def offset_channels(groups: int, *, modulated: bool) -> int:
    """Channels that are predicted for ``groups`` groups: (y, x) of each tap, then perhaps a weight of each."""
    return (3 if modulated else 2) * TAPS * groups


def deform_conv(conv: nn.Conv2d, x: Tensor, prediction: Tensor, *, modulated: bool) -> Tensor:
    """Convolve where a prediction says.

    Args:
        conv: its weight, bias, stride, padding and dilation are used.
        x: (N, C, H, W).
        prediction: (N, ``offset_channels``, H', W'), offsets in px and logits of the weights.
        modulated: whether there are weights (version 2).

    Returns:
        (N, C', H', W') in the dtype of the weight: the operator knows no autocast, all its inputs need one dtype.
    """
    dtype = conv.weight.dtype
    split = prediction.shape[1] * 2 // 3 if modulated else prediction.shape[1]
    mask = prediction[:, split:].sigmoid().to(dtype) if modulated else None
    return deform_conv2d(
        x.to(dtype),
        prediction[:, :split].to(dtype),
        conv.weight,
        conv.bias,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        mask=mask,
    )


def no_offsets(conv: nn.Conv2d) -> None:
    """Let a predicting convolution start at a plain convolution: no displacement anywhere."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


class DeformUnit(nn.Module):
    """Convolution that predicts where to sample, followed by the deformable 3x3 convolution, norm and activation.

    Args:
        in_channels, out_channels: channels; stride 1 and padding 1 keep the size.
        norm: layer after the convolution, or None, which gives the convolution a bias.
        activation: last layer.
        modulated: a mask in (0, 1) per sampled point (version 2).
        groups: groups of channels that share their offsets.
    """

    foldable = (("conv", "norm"),)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: nn.Module | None,
        activation: Callable[[Tensor], Tensor],
        modulated: bool = True,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.modulated = modulated
        self.conv_offset = nn.Conv2d(in_channels, offset_channels(groups, modulated=modulated), 3, padding=1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm is None)
        self.norm = norm
        self.activation = activation
        no_offsets(self.conv_offset)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, Cin, H, W) to (N, Cout, H, W)."""
        x = deform_conv(self.conv, x, self.conv_offset(x), modulated=self.modulated)
        return self.activation(x if self.norm is None else self.norm(x))


class ModulatedDeformConv(nn.Module):
    """3x3, stride 1, one group of offsets, with bias; the state-dict names are those of the published FCOS heads.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, offset_channels(1, modulated=True), 3, padding=1)
        self.conv = DeformConv2d(channels, channels, kernel_size=3, padding=1)  # U(-b, b), b = 1 / sqrt(9 C)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W); shape and dtype stay."""
        return deform_conv(self.conv, x, self.offset(x), modulated=True).to(x.dtype)
