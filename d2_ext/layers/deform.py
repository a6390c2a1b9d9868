"""Deformable 3x3 convolutions on torchvision's operator, which also runs on the CPU.

Papers: Deformable Convolutional Networks (arXiv:1703.06211); Deformable ConvNets v2 (arXiv:1811.11168).
Differs: at initialisation the modulated form multiplies by sigmoid(0) = 1/2, as the published code does; the frozen
statistics behind it fit again only when the mask has been trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


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
        self.num_offsets = 18 * groups  # x and y of 9 points
        self.conv_offset = nn.Conv2d(in_channels, (27 if modulated else 18) * groups, 3, padding=1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm is None)
        self.norm = norm
        self.activation = activation
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Start as a plain convolution: no displacement anywhere."""
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, Cin, H, W) to (N, Cout, H, W)."""
        prediction = self.conv_offset(x)
        mask = torch.sigmoid(prediction[:, self.num_offsets :]) if self.modulated else None
        offsets = prediction[:, : self.num_offsets]
        weight, bias = self.conv.weight, self.conv.bias
        if torch.is_autocast_enabled(x.device.type):  # the operator wants one dtype and autocast does not know it
            x, offsets, mask = x.float(), offsets.float(), None if mask is None else mask.float()
        x = deform_conv2d(x, offsets, weight, bias, padding=1, mask=mask)
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x)
