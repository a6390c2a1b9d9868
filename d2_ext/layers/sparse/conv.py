"""Convolution at the active positions of a mask: dense reference and gather path.

The dense form (``dense_masked_conv``) is the definition. The gather path (``gather_conv``) computes the same numbers,
to rounding, at the active positions only: it collects the 3x3 neighborhoods of n rows and multiplies them with the
kernel in matrix products. Layout and letters: ``rows.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.layers.sparse.kernels import TOLERANCE, run_fastest, triton_kernels
from d2_ext.layers.sparse.layer import RowEpilogue
from d2_ext.layers.sparse.linear import compute_dtype, row_linear, tap_major, uses_onednn
from d2_ext.layers.sparse.rows import TAPS, TableRows, chunk_rows, even_rows, slices, to_even_rows

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


def active_rows(masks: Sequence[Tensor], count: int | None = None) -> Tensor:
    """Row numbers of the active positions of some masks.

    Args:
        masks: L masks (N, 1, H, W).
        count: their number n, if it is known: then a GPU's host need not wait for it.

    Returns:
        (n,) int64, ascending.
    """
    flat = torch.cat([m.reshape(-1) for m in masks])
    if count is None or flat.device.type == "cpu":
        return flat.nonzero().squeeze(1)
    return torch.nonzero_static(flat, size=count).squeeze(1)


def dilated(mask: Tensor) -> Tensor:
    """Positions with an active one among their 3x3 neighbors; bool (N, 1, H, W), like the mask."""
    for dim in (2, 3):
        size = mask.shape[dim] - 1
        grown = mask.clone()
        grown.narrow(dim, 1, size).logical_or_(mask.narrow(dim, 0, size))
        grown.narrow(dim, 0, size).logical_or_(mask.narrow(dim, 1, size))
        mask = grown
    return mask


def gather_conv(
    table: Tensor, neighbors: Tensor, weight: Tensor, bias: Tensor | None, epilogue: RowEpilogue | None = None
) -> Tensor:
    """Convolve at some positions only, on a CUDA device by its fastest kernel (``kernels.py``).

    Args:
        table: features (m + 1, C), the last row zeros.
        neighbors: numbers of the 3x3 neighborhoods in the table (n, 9); m is outside the map.
        weight: of a convolution of stride 1, padding 1 and one group, (C', C, 3, 3); computed in the table's dtype.
        bias: (C',).
        epilogue: what follows the convolution; nothing if None.

    Returns:
        (n, C') in the dtype of the table.
    """
    weight = tap_major(weight.to(table.dtype))
    bias = None if bias is None else bias.to(table.dtype)

    def in_chunks() -> Tensor:
        step = chunk_rows(table.device, table.shape[1])
        source = TableRows(table, even_rows(min(step, len(neighbors)), table.device) * TAPS)
        out = table.new_empty((len(neighbors), len(weight)))
        for part in slices(len(neighbors), step):
            y = row_linear(source.columns(to_even_rows(neighbors[part])), weight, bias)[: part.stop - part.start]
            out[part] = y if epilogue is None else epilogue(y, part)
        return out

    if table.device.type != "cuda" or table.dtype not in TOLERANCE or len(neighbors) == 0:
        return in_chunks()
    rows = 1 << (len(neighbors) - 1).bit_length()
    key = (table.device, table.dtype, table.shape[1], len(weight), rows, type(epilogue).__name__)
    return run_fastest(key, in_chunks, triton_kernels(table, neighbors, weight, bias, epilogue), table.dtype)


def convolve_to_few(x: Tensor, convs: Sequence[nn.Conv2d]) -> Tensor:
    """Convolve one map with several 3x3 convolutions of one output channel each, reading it once.

    Args:
        x: (N, C, H, W), fast in channels-last order.
        convs: k convolutions C -> 1, padding 1.

    Returns:
        (N, k, H, W). Without gradient where ``row_linear`` works on oneDNN, and in a graph that is exported: every
        position is multiplied with all 9*k taps in one product, then the taps are shifted and added. Runtimes, too,
        compute a block of 8 or 16 output channels where one or two are asked for.
    """
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([conv.bias for conv in convs])
    exporting = torch.compiler.is_exporting()
    if compute_dtype(x) != torch.float32 or not (exporting or uses_onednn(x)):
        return F.conv2d(x, weight, bias, padding=1)  # 16-bit taps would be rounded before they are added
    n, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    taps = weight.permute(0, 2, 3, 1).reshape(-1, channels)
    if exporting:  # in operators that every runtime has
        products = row_linear(rows, taps, None).view(n, height * width, -1).transpose(1, 2)
        bordered = F.pad(products.view(n, len(weight), 9, height, width), (1, 1, 1, 1))
        y = bias.view(-1, 1, 1)
        for tap in range(9):
            top, left = tap // 3, tap % 3
            y = y + bordered[:, :, tap, top : top + height, left : left + width]
        return y
    shifted = row_linear(taps, rows, None).view(len(weight), 9, n, height, width).transpose(0, 2)  # (n, 9, k, H, W)
    y = shifted[:, 4] + bias.view(-1, 1, 1)
    for tap in (0, 1, 2, 3, 5, 6, 7, 8):
        (to_y, from_y), (to_x, from_x) = _overlap(tap // 3 - 1, height), _overlap(tap % 3 - 1, width)
        y[:, :, to_y, to_x] += shifted[:, tap, :, from_y, from_x]
    return y


def _overlap(step: int, size: int) -> tuple[slice, slice]:
    """Positions of a side whose neighbor a step away exists, and these neighbors."""
    here = slice(max(-step, 0), size - max(step, 0))
    return here, slice(here.start + step, here.stop + step)
