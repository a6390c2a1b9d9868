"""Modulated deformable 3x3 convolution (DCNv2) for towers, on torchvision's operator.

Paper: Deformable ConvNets v2, arXiv:1811.11168. Runs on CPU and GPU without a compiled extension.
State-dict names are those of the published FCOS heads: ``offset.{weight,bias}`` and ``conv.{weight,bias}``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import DeformConv2d


def split_offset_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split 27 predicted channels into (N, 18, H, W) offsets (y, x per tap) and (N, 9, H, W) weights in 0..1."""
    return x[:, :18], x[:, 18:].sigmoid()


class ModulatedDeformConv(nn.Module):
    """3x3, stride 1, one group of offsets, with bias.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 27, kernel_size=3, padding=1)
        self.conv = DeformConv2d(channels, channels, kernel_size=3, padding=1)  # U(-b, b), b = 1 / sqrt(9 C)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W); the shape stays."""
        offset, mask = split_offset_mask(self.offset(x))
        # torchvision's operator has no autocast rule: all its inputs must have one type.
        kind = self.conv.weight.dtype
        return self.conv(x.to(kind), offset.to(kind), mask.to(kind)).to(x.dtype)
