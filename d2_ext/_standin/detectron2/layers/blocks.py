"""Base class of the blocks that a backbone is made of."""

from __future__ import annotations

from detectron2.layers.batch_norm import FrozenBatchNorm2d
from torch import nn
from typing_extensions import Self


class CNNBlockBase(nn.Module):
    """A module from (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).

    Attributes:
        in_channels, out_channels: numbers of channels.
        stride: px of the input per px of the output.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def freeze(self) -> Self:
        """Take the block out of training: no gradients, and every batch norm becomes a ``FrozenBatchNorm2d``."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
