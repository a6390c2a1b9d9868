"""Convolution towers of dense heads, with norms per level where a norm keeps statistics.

State-dict names are those of the published FCOS heads: in a tower of n convolutions with norm, ``3 * i`` is a
convolution, ``3 * i + 1`` its norm; a norm per level adds the level's index.
"""

from __future__ import annotations

from d2_ext.layers.deform import ModulatedDeformConv

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn

STATISTICS_NORMS = ("BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


class Scale(nn.Module):
    """A learned factor, 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.scale


class LevelNorms(nn.ModuleList):
    """One norm per pyramid level: maps of different levels have different statistics."""

    def __init__(self, norm: str, channels: int, num_levels: int) -> None:
        super().__init__(get_norm(norm, channels) for _ in range(num_levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Normalize (N, C, H, W) with the norm of its level."""
        return self[level](x)


class ConvTower(nn.Sequential):
    """Layers of 3x3 convolution (with bias), norm, ReLU, shared by all levels.

    Args:
        channels: of input, hidden layers and output.
        num_convs: number of layers; 0 makes an identity.
        num_levels: of the pyramid; norms that keep statistics exist once per level.
        norm: as in ``detectron2.layers.get_norm``; "" for none.
        deform_last: modulated deformable convolution in the last layer.
    """

    def __init__(
        self, channels: int, num_convs: int, *, num_levels: int, norm: str = "GN", deform_last: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        for index in range(num_convs):
            deform = deform_last and index == num_convs - 1
            layers.append(ModulatedDeformConv(channels) if deform else nn.Conv2d(channels, channels, 3, padding=1))
            if norm in STATISTICS_NORMS:
                layers.append(LevelNorms(norm, channels, num_levels))
            elif norm:
                layers.append(get_norm(norm, channels))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Run one level.

        Args:
            x: (N, C, H, W).
            level: index of the pyramid level, finest 0.
        """
        for layer in self:
            x = layer(x, level) if isinstance(layer, LevelNorms) else layer(x)
        return x


def init_head_convs(module: nn.Module, std: float = 0.01) -> None:
    """Fill all plain convolutions of a head with N(0, std^2), their biases with 0 (section 4 of RetinaNet)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
