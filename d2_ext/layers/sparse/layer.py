"""A layer of a sparse tower: 3x3 convolution and norm."""

from __future__ import annotations

from d2_ext.layers.sparse.context_norm import ContextGroupNorm, Epilogue
from d2_ext.layers.sparse.position_norm import PositionEpilogue, PositionNorm

from torch import nn

TowerNorm = ContextGroupNorm | PositionNorm
RowEpilogue = Epilogue | PositionEpilogue


class ContextLayer(nn.Module):
    """3x3 convolution and norm of one tower layer, whose input and output have C channels."""

    def __init__(self, channels: int, norm: TowerNorm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = norm
