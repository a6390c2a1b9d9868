"""Winograd's convolution of 2x2 tiles: four outputs of a 3x3 kernel for 16 products each channel pair, instead of 36.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308, F(2x2, 3x3). A tile reads a
window of 4x4 positions. Windows and kernel are transformed by sums (all factors are 0, 1 and 1/2, so the rounding
error is that of a direct convolution), multiplied tap by tap, and transformed back.
"""

from __future__ import annotations

import math

from d2_ext.layers.sparse.linear import row_linear
from d2_ext.layers.sparse.rows import slices

import torch
from torch import Tensor

WINDOW = 4  # positions a side that a tile of two reads
KERNEL_CHANNELS = 128  # output channels whose kernels are transformed at a time, in the cache
# Each transformed window row is the sum or difference of two: (first, second, sign of the second).
PAIRS = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))


def tile_kernel(weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Transform a kernel (C', C, 3, 3) for ``convolve_tiles``: (4, 4, C', C).

    The result is written into ``out`` if that is given and large enough: fresh memory takes longer than the sums.
    """
    shape = (WINDOW, WINDOW, *weight.shape[:2])
    if out is None or out.numel() < math.prod(shape):
        out = weight.new_empty(math.prod(shape))
    kernel = out.view(-1)[: math.prod(shape)].view(shape)
    for part in slices(len(weight), KERNEL_CHANNELS):
        taps = weight[part].permute(2, 3, 0, 1)
        rows = taps.new_empty((WINDOW, 3, *taps.shape[2:]))
        _transform_kernel(taps, rows)
        _transform_kernel(rows.transpose(0, 1), kernel[:, :, part].transpose(0, 1))
    return kernel


def _transform_kernel(taps: Tensor, out: Tensor) -> None:
    """Write a, (a + b + c) / 2, (a - b + c) / 2 and c for the three taps a, b, c along the first dimension."""
    out[0], out[3] = taps[0], taps[2]
    torch.add(taps[0], taps[2], out=out[1]).mul_(0.5)
    torch.sub(out[1], taps[1], alpha=0.5, out=out[2])
    out[1].add_(taps[1], alpha=0.5)


def convolve_tiles(windows: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve tiles of 2x2 outputs.

    Args:
        windows: (k, 16 * C), the rows of 4x4 positions each, row-major.
        kernel: see ``tile_kernel``.
        bias: (C',) or None.

    Returns:
        (4, k, C'): the outputs above left, above right, below left, below right.
    """
    windows = windows.view(len(windows), WINDOW, WINDOW, -1)
    out = windows.new_empty((2, 2, len(windows), kernel.shape[2]))
    for row, (first, second, sign) in enumerate(PAIRS):
        combined = torch.add(windows[:, first], windows[:, second], alpha=sign)
        left, right = _convolve_row(combined, kernel[row])
        for side, value in enumerate((left, right)):
            if row == 0:
                out[0, side] = value
                continue
            if row < 3:
                out[0, side] += value
            if row == 1:
                out[1, side] = value
            else:
                out[1, side] -= value
    if bias is not None:
        out += bias
    return out.view(4, len(windows), -1)


def _convolve_row(row: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply one transformed window row (k, 4, C) with its kernels (4, C', C); the left and right sums (k, C')."""
    products = [
        row_linear(torch.add(row[:, first], row[:, second], alpha=sign), weight, None)
        for (first, second, sign), weight in zip(PAIRS, kernel)
    ]
    left = products[0].add_(products[1]).add_(products[2])
    right = products[1].sub_(products[2]).sub_(products[3])
    return left, right
