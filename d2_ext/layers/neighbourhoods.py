"""The 3x3 neighbourhoods of active positions: where they lie, and how they are collected.

Letters and tables: ``layers/levels.py``. A convolution at n positions multiplies their columns, rows of 9 * C numbers,
with its kernel. Columns are made a chunk of positions at a time, in one buffer that stays in the cache of a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from d2_ext.layers.levels import RowLayout

import torch
from torch import Tensor

TAPS = 9
# Positions of one chunk: their neighbourhoods (256 * 9 * 512 floats = 4.7 MB) shall stay in the cache of a CPU.
CHUNK_ROWS = {"cpu": 256}
DEFAULT_CHUNK_ROWS = 16384


def chunk_rows(device: torch.device) -> int:
    """Positions of one chunk on a device."""
    return CHUNK_ROWS.get(device.type, DEFAULT_CHUNK_ROWS)


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
        return self.neighbours[:, TAPS // 2]


class Neighbourhoods(Protocol):
    """The neighbourhoods of n positions."""

    dtype: torch.dtype

    def parts(self) -> Iterator[slice]:
        """Cut the n positions into chunks."""

    def columns(self, part: slice) -> Tensor:
        """Neighbourhoods (k, 9 * C) of a chunk; the next call overwrites them."""


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


class TableNeighbourhoods:
    """Neighbourhoods in a table (m + 1, C) whose last row is zeros.

    Args:
        table: it may change between two calls of :meth:`columns`.
        numbers: of the neighbours in the table (n, 9).
    """

    def __init__(self, table: Tensor, numbers: Tensor) -> None:
        self.dtype = table.dtype
        self._table, self._numbers = table, numbers
        self._step = chunk_rows(table.device)
        self._buffer = table.new_empty((min(self._step, len(numbers)) * TAPS, table.shape[1]))

    def parts(self) -> Iterator[slice]:
        """Cut the n positions into chunks."""
        return _parts(len(self._numbers), self._step)

    def columns(self, part: slice) -> Tensor:
        """Neighbourhoods (k, 9 * C) of a chunk."""
        numbers = self._numbers[part].reshape(-1)
        columns = torch.index_select(self._table, 0, numbers, out=self._buffer[: len(numbers)])
        return columns.view(-1, TAPS * columns.shape[1])


class MapNeighbourhoods:
    """Neighbourhoods read straight from the maps, without a table of their rows; for the CPU, where ``tolist`` is free.

    Args:
        sources: rows (N*H*W, C) of the L maps.
        layout: of the maps.
        index: row numbers of the positions (n,), ascending.
        dtype: of the columns.
    """

    def __init__(self, sources: Sequence[Tensor], layout: RowLayout, index: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._sources = sources
        self._step = chunk_rows(index.device)
        numbers = layout.neighbours(index)
        outside = numbers == layout.num_rows
        # Outside the picture the position itself is read, and then overwritten with zeros.
        self._numbers = torch.where(outside, index[:, None], numbers)
        self._outside = outside.view(-1).nonzero().squeeze(1)
        self._starts = layout.map_starts
        self._map_bounds = torch.searchsorted(index, torch.tensor(self._starts)).tolist()
        self._buffer = sources[0].new_empty((min(self._step, len(index)) * TAPS, sources[0].shape[1]))

    def parts(self) -> Iterator[slice]:
        """Cut the n positions into chunks."""
        return _parts(len(self._numbers), self._step)

    def columns(self, part: slice) -> Tensor:
        """Neighbourhoods (k, 9 * C) of a chunk."""
        for number, source in enumerate(self._sources):
            first = max(self._map_bounds[number], part.start)
            last = min(self._map_bounds[number + 1], part.stop)
            if first < last:
                rows = (self._numbers[first:last] - self._starts[number]).view(-1)
                out = self._buffer[(first - part.start) * TAPS : (last - part.start) * TAPS]
                torch.index_select(source, 0, rows, out=out)
        columns = self._buffer[: (part.stop - part.start) * TAPS]
        ends = torch.tensor([part.start * TAPS, part.stop * TAPS])
        first, last = torch.searchsorted(self._outside, ends).tolist()
        columns.index_fill_(0, self._outside[first:last] - part.start * TAPS, 0)
        return columns.view(-1, TAPS * columns.shape[1]).to(self.dtype)
