"""Collecting the rows of neighbourhoods: from a table, or straight from the maps.

Letters and tables: ``rows.py``. A convolution at k positions multiplies their neighbourhoods, T * C numbers
each (T = 9 for a 3x3 kernel, 16 for the window of a tile), with its kernel. They are collected a chunk at a time,
in one buffer that stays in the cache of a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from d2_ext.layers.sparse.rows import RowLayout

import torch
from torch import Tensor

TAPS = 9
# Positions of one chunk: their neighbourhoods (256 * 9 * 512 floats = 4.7 MB) shall stay in the cache of a CPU.
CHUNK_ROWS = {"cpu": 256}
DEFAULT_CHUNK_ROWS = 16384
# On a CPU the positions of a chunk are a multiple of this: oneDNN makes and keeps code for each number of rows, 0.2 ms
# and 0.4 MB each, 1024 of them. Even numbers cost a few rows in a layer's last chunk, and change no bit of the others.
ROW_STEP = {"cpu": 8}


def chunk_rows(device: torch.device) -> int:
    """Positions of one chunk on a device."""
    return CHUNK_ROWS.get(device.type, DEFAULT_CHUNK_ROWS)


def slices(count: int, step: int) -> Iterator[slice]:
    """Cut ``count`` things into slices of ``step``, the last one shorter."""
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def even_rows(count: int, device: torch.device) -> int:
    """How many positions are computed where ``count`` are wanted: as many, or a few more (see ``ROW_STEP``)."""
    step = ROW_STEP.get(device.type, 1)
    return -(-count // step) * step


def to_even_rows(numbers: Tensor) -> Tensor:
    """Row numbers of some positions (k, T) for :func:`even_rows` of them, the last position repeated."""
    missing = even_rows(len(numbers), numbers.device) - len(numbers)
    return torch.cat([numbers, numbers[-1:].expand(missing, -1)]) if missing else numbers


class RowSource(Protocol):
    """Where neighbourhoods are collected from."""

    dtype: torch.dtype

    def columns(self, numbers: Tensor) -> Tensor:
        """Rows with the given numbers (k, T), those of a position side by side: (k, T * C).

        The next call overwrites the result.
        """


class TableRows:
    """Neighbourhoods in a table (m + 1, C) whose last row is zeros.

    Args:
        table: it may change between two calls of :meth:`columns`.
        capacity: most rows of one call.
        place: which row of the table holds which row number; None: the same.
    """

    def __init__(self, table: Tensor, capacity: int, place: Tensor | None = None) -> None:
        self.dtype = table.dtype
        self._table, self._place = table, place
        self._buffer = table.new_empty((capacity, table.shape[1]))

    def columns(self, numbers: Tensor) -> Tensor:
        """Rows with the given numbers (k, T): (k, T * C)."""
        places = numbers if self._place is None else self._place[numbers]
        out = self._buffer[: places.numel()]
        return torch.index_select(self._table, 0, places.reshape(-1), out=out).view(len(numbers), -1)


class MapRows:
    """Neighbourhoods read straight from the maps, without a table of their rows; for the CPU, where ``tolist`` is free.

    Args:
        sources: rows (N*H*W, C) of the L maps.
        layout: of the maps.
        capacity: most rows of one call.
        dtype: of the result.
    """

    def __init__(self, sources: Sequence[Tensor], layout: RowLayout, capacity: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._sources, self._layout = sources, layout
        self._buffer = sources[0].new_empty((capacity, sources[0].shape[1]))

    def columns(self, numbers: Tensor) -> Tensor:
        """Rows with the given numbers (k, T), which ascend from map to map; zeros for what is outside: (k, T * C)."""
        taps, starts = numbers.shape[1], self._layout.map_starts
        lowest = numbers.amin(1)
        outside = numbers == self._layout.num_rows
        # Outside the image another row of the same map is read, and then overwritten with zeros.
        numbers = torch.where(outside, lowest[:, None], numbers)
        columns = self._buffer[: numbers.numel()]
        bounds = torch.searchsorted(lowest, torch.tensor(starts)).tolist()
        for source, start, first, last in zip(self._sources, starts, bounds, bounds[1:]):
            if first < last:
                rows = (numbers[first:last] - start).view(-1)
                torch.index_select(source, 0, rows, out=columns[first * taps : last * taps])
        columns.index_fill_(0, outside.view(-1).nonzero().squeeze(1), 0)
        return columns.view(len(numbers), -1).to(self.dtype)
