"""Convolution at the active positions of a mask: dense reference and gather path.

The dense form (``dense_masked_conv``) is the definition. The gather path (``gather_conv``) computes the same numbers,
to rounding, at the active positions only: it collects the 3x3 neighbourhoods of n rows and multiplies them with the
kernel in matrix products. Layout and letters: ``layers/levels.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from d2_ext.layers.levels import RowLayout
from d2_ext.layers.row_linear import compute_dtype, row_linear, tap_major, uses_onednn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows of one gather: their nine neighbours (512 * 9 * 512 floats = 9 MB) shall stay in the cache of a CPU.
CHUNK_ROWS = {"cpu": 256}
DEFAULT_CHUNK_ROWS = 16384


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


def active_rows(masks: Sequence[Tensor]) -> Tensor:
    """Row numbers (n,), int64 ascending, of the active positions of L masks (N, 1, H, W)."""
    return torch.cat([m.reshape(-1) for m in masks]).nonzero().squeeze(1)


@dataclass(frozen=True)
class Stencil:
    """Active positions of a list of maps, and where their 3x3 neighbourhoods lie in a table.

    The table holds the rows that any of the kernels reads, and one row of zeros below them for what lies outside the
    picture's map. The other rows are never made, except on a GPU, where finding out which they are would make the host
    wait.

    Attributes:
        index: row numbers (n,) of the active positions, ascending.
        rows: row numbers (m,) of the table's rows, ascending; None if they are all rows, m = R.
        neighbours: numbers in the table (n, 9), the taps in the kernel's order; m means outside.
    """

    index: Tensor
    rows: Tensor | None
    neighbours: Tensor

    @classmethod
    def of(cls, layout: RowLayout, index: Tensor) -> Stencil:
        """Neighbourhoods of the rows ``index`` (n,) of a layout."""
        neighbours = layout.neighbours(index)
        if index.device.type != "cpu":
            return cls(index, None, neighbours)
        read = torch.zeros(layout.num_rows + 1, dtype=torch.bool)
        read[neighbours.reshape(-1)] = True
        read[-1] = False
        rows = read.nonzero().squeeze(1)
        number = torch.full((layout.num_rows + 1,), len(rows))
        number[rows] = torch.arange(len(rows))
        return cls(index, rows, number[neighbours])

    @property
    def centre(self) -> Tensor:
        """Numbers in the table (n,) of the active positions themselves."""
        return self.neighbours[:, 4]


def convolved_chunks(table: Tensor, neighbours: Tensor, conv: nn.Conv2d) -> Iterator[tuple[slice, Tensor]]:
    """Convolve at some positions only, a chunk of them at a time.

    Args:
        table: features (m + 1, C), the last row zeros.
        neighbours: numbers in the table (n, 9), see ``Stencil``.
        conv: 3x3, stride 1, padding 1, one group; computed in the dtype of the table.

    Yields:
        A slice of the n positions and the output (k, C') at them, still in the cache of a CPU.
    """
    weight = tap_major(conv.weight.to(table.dtype))
    bias = None if conv.bias is None else conv.bias.to(table.dtype)
    step = CHUNK_ROWS.get(table.device.type, DEFAULT_CHUNK_ROWS)
    taps, width = neighbours.shape[1], table.shape[1]
    buffer = table.new_empty((min(step, len(neighbours)) * taps, width))
    for start in range(0, len(neighbours), step):
        chunk = neighbours[start : start + step]
        columns = torch.index_select(table, 0, chunk.reshape(-1), out=buffer[: chunk.numel()])
        yield slice(start, start + step), row_linear(columns.view(-1, taps * width), weight, bias)


def gather_conv(table: Tensor, neighbours: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve at some positions only: output (n, C'); for the arguments see ``convolved_chunks``."""
    out = table.new_empty((len(neighbours), conv.out_channels))
    for part, y in convolved_chunks(table, neighbours, conv):
        out[part] = y
    return out


def convolve_to_few(x: Tensor, convs: Sequence[nn.Conv2d]) -> Tensor:
    """Convolve one map with several 3x3 convolutions of one output channel each, reading it once.

    Args:
        x: (N, C, H, W), fast in channels-last order.
        convs: k convolutions C -> 1, padding 1.

    Returns:
        (N, k, H, W). Without gradient where ``row_linear`` works on oneDNN: every position is multiplied with all 9*k
        taps in one product, then the taps are shifted and added.
    """
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([conv.bias for conv in convs])
    if compute_dtype(x) != torch.float32 or not uses_onednn(x):
        return F.conv2d(x, weight, bias, padding=1)  # 16-bit taps would be rounded before they are added
    n, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    taps = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, channels)  # flipped: `fold` scatters
    products = row_linear(rows, taps, None).view(n, height * width, -1).transpose(1, 2)
    return F.fold(products, (height, width), 3, padding=1) + bias.view(-1, 1, 1)
