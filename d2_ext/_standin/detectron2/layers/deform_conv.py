"""Deformable convolutions (Dai et al., arXiv:1703.06211; Zhu et al., arXiv:1811.11168) on torchvision's operator.

Offsets are (N, 2 x deformable groups x kernel area, H, W): for each point of the kernel, y then x, in px of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.ops import DeformConv2d

_Size = int | tuple[int, int]


class _NormedDeformConv(DeformConv2d):
    """torchvision's layer with Detectron2's initial weights, and a norm and an activation behind it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size = 0,
        dilation: _Size = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if in_channels % groups or out_channels % groups:
            raise AssertionError(f"{groups} groups divide {in_channels} or {out_channels} channels with a remainder.")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.deformable_groups = deformable_groups
        self.norm, self.activation = norm, activation

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, offset, mask)
        out = out if self.norm is None else self.norm(out)
        return out if self.activation is None else self.activation(out)


class DeformConv(_NormedDeformConv):
    """Convolution that reads its input at shifted points: ``forward(x, offset)``. It has no bias."""

    def __init__(self, *args: Any, bias: bool = False, **kwargs: Any) -> None:
        """Take the arguments of ``ModulatedDeformConv``, up to ``deformable_groups`` also by position."""
        assert not bias, "DeformConv has no bias; use ModulatedDeformConv, or a norm."
        super().__init__(*args, bias=False, **kwargs)


class ModulatedDeformConv(_NormedDeformConv):
    """The same with a weight for each point: ``forward(x, offset, mask)``.

    The mask is (N, deformable groups x kernel area, H, W).
    """
