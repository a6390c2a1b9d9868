"""What the residual blocks of all backbones share."""

from __future__ import annotations

from detectron2.layers.batch_norm import FrozenBatchNorm2d
from torch import nn
from typing_extensions import Self


class CNNBlockBase(nn.Module):
    """A block from ``in_channels`` to ``out_channels`` that makes maps smaller by ``stride``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def freeze(self) -> Self:
        """Stop the training of all parameters and of the statistics of batch norms; returns the block."""
        FrozenBatchNorm2d.convert_frozen_batchnorm(self.requires_grad_(False))
        return self
