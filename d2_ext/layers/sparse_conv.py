"""Convolution at the active positions of a mask: dense reference and gather path.

The dense form (``dense_masked_conv``) is the definition. The gather path (``gather_conv``) computes the same numbers,
to rounding, at the active positions only: it collects the 3x3 neighbourhoods of n rows and multiplies them with the
kernel in one matrix product. Layout and letters: ``layers/levels.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dense_masked_conv(x: Tensor, conv: nn.Conv2d, mask: Tensor, base: float = 0.0) -> Tensor:
    """Convolve everywhere, keep the active positions, and set the others to a constant.

    Args:
        x: (N, C, H, W).
        conv: a convolution that keeps the size of the map.
        mask: (N, 1, H, W), 0 or 1; the result is differentiable in it.
        base: value of the inactive positions.

    Returns:
        ``mask * conv(x) + (1 - mask) * base``, (N, C', H, W).
    """
    y = conv(x) * mask
    return y if base == 0 else y + base * (1 - mask)


def tap_major(weight: Tensor) -> Tensor:
    """Kernel (C', C, 3, 3) as a matrix (C', 9*C) for rows that hold nine neighbours of C channels each."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def gather_conv(table: Tensor, neighbours: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve at some positions only.

    Args:
        table: features (R + 1, C), the last row zeros.
        neighbours: row numbers (n, 9), see ``RowLayout.neighbours``.
        conv: 3x3, stride 1, padding 1, one group.

    Returns:
        Its output at the n positions, (n, C').
    """
    columns = table.index_select(0, neighbours.reshape(-1)).view(-1, 9 * table.shape[1])  # (n, 9*C)
    return F.linear(columns, tap_major(conv.weight), conv.bias)


def active_rows(masks: list[Tensor]) -> Tensor:
    """Row numbers (n,), int64 ascending, of the active positions of L masks (N, 1, H, W)."""
    return torch.cat([m.reshape(-1) for m in masks]).nonzero().squeeze(1)
