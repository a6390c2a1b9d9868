"""Positions of several feature maps in one table of rows, and the neighborhoods of some of them.

Legend, for all of d2_ext: N images, C channels, H W rows and columns of a map, L maps (usually pyramid levels), A
anchors a position, K classes, R positions of all maps (sum of N*H*W), M ground-truth boxes of one image, n active
positions. A *segment* is one image of one map: the unit over which statistics are taken.

A table of rows is channels-last: (R, C), map after map, within a map image after image, within an image row-major.
Reading a position's features is then one contiguous copy, and layers whose weights are shared by all levels need one
matrix product for all of them.

A convolution at k positions multiplies their neighborhoods, T * C numbers each (T = 9 for a 3x3 kernel, 16 for the
window of a tile), with its kernel. They are collected a chunk at a time, in one buffer that stays in the cache of a
CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

TAPS = 9
# Numbers in a position's features, times positions of one chunk: their neighborhoods (9 * 131072 floats = 4.7 MB) stay
# in the cache of a CPU, and both threads of a small one have enough to do between two calls.
CHUNK_NUMBERS = {"cpu": 256 * 512}
DEFAULT_CHUNK_ROWS = 16384
# On a CPU the positions of a chunk are a multiple of this: oneDNN makes and keeps code for each number of rows, 0.2 ms
# and 0.4 MB each, 1024 of them. Even numbers cost a few rows in a layer's last chunk, and change no bit of the others.
ROW_STEP = {"cpu": 32}


# Tables of rows


@dataclass(frozen=True)
class RowLayout:
    """Where each position of a list of maps lies in their common table of rows.

    Attributes:
        shapes: (N, H, W) of each map.
    """

    shapes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> RowLayout:
        """Layout of L maps, each (N, C, H, W)."""
        return cls(tuple((m.shape[0], m.shape[2], m.shape[3]) for m in maps))

    @cached_property
    def map_sizes(self) -> tuple[int, ...]:
        """Rows of each map, N*H*W."""
        return tuple(n * h * w for n, h, w in self.shapes)

    @cached_property
    def map_starts(self) -> tuple[int, ...]:
        """Row number of each map's first row, and behind them R."""
        return running_sums(self.map_sizes)

    @cached_property
    def num_rows(self) -> int:
        """R, the rows of all maps."""
        return sum(self.map_sizes)

    @cached_property
    def segment_sizes(self) -> tuple[int, ...]:
        """Positions (H*W) of each segment, in row order."""
        return tuple(h * w for n, h, w in self.shapes for _ in range(n))

    def flatten(self, maps: Sequence[Tensor]) -> Tensor:
        """Copy L maps (N, C, H, W) into one table (R, C)."""
        return torch.cat([rows_of(m) for m in maps])

    def maps(self, rows: Tensor) -> list[Tensor]:
        """Turn a table (R, C) back into L maps (N, C, H, W), which are views in channels-last order."""
        parts = rows.split(self.map_sizes)
        return [part.view(n, h, w, -1).permute(0, 3, 1, 2) for part, (n, h, w) in zip(parts, self.shapes)]

    def map_of(self, index: Tensor | None, device: torch.device) -> Tensor:
        """Map number of each row number in ``index`` (n,), or of all R rows if that is None: int64."""
        sizes = constant(self.map_sizes, device)
        number = torch.arange(len(sizes), device=device).repeat_interleave(sizes, output_size=self.num_rows)
        return number if index is None else number[index]

    def segment_of(self, index: Tensor) -> Tensor:
        """Segment number of each row number in ``index`` (n,), as int64 (n,)."""
        ends = constant(running_sums(self.segment_sizes)[1:], index.device)
        return torch.bucketize(index, ends, right=True)

    def neighbors(self, index: Tensor, offsets: Sequence[int] = (-1, 0, 1)) -> Tensor:
        """Row numbers of the square neighborhood of some positions, of 3x3 unless told otherwise.

        Args:
            index: row numbers (n,), int64.
            offsets: k rows, and columns, of the map in relation to the position.

        Returns:
            (n, k * k) int64, row-major, for 3x3 in the order of a kernel's taps. A neighbor outside the image's map
            has the number R: a table that is indexed with them needs one more row, of zeros.
        """
        height, width, y, x = self._local(index)
        step = constant(tuple(offsets), index.device)[:, None]
        rows, columns = y + step, x + step  # (k, n): long inner dimensions are faster than short ones
        inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
        numbers = (index + step * width)[:, None] + step
        return torch.where(inside, numbers, self.num_rows).flatten(0, 1).T.contiguous()

    def tiles(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The 2x2 tile of each position; tiles begin at even rows and columns of each image.

        Args:
            index: row numbers (n,), int64.

        Returns:
            Row number of the tile's upper left position (n,); and where in the tile the position is (n,): 0 and 1
            above, 2 and 3 below.
        """
        _, width, y, x = self._local(index)
        return index - (y % 2) * width - x % 2, (y % 2) * 2 + x % 2

    def _local(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Height and width of each position's map, and its row and column in it, four times (n,)."""
        ends = self.map_starts[1:]
        table = constant([(h, w, end) for (_, h, w), end in zip(self.shapes, ends)], index.device).reshape(-1, 3)
        height, width, end = table[torch.bucketize(index, table[:, 2].contiguous(), right=True)].unbind(1)
        # Every image of a map ends at a multiple of H*W before the map's end, so the map's start is not needed.
        local = (index - end) % (height * width)
        return height, width, local.div(width, rounding_mode="floor"), local % width


@dataclass(frozen=True)
class RowValues:
    """Values at some positions of a list of maps, and one number everywhere else.

    The result of a masked layer, in training (``index`` is None: every position has its own value) and in inference
    (only active positions have) alike.

    Attributes:
        values: (n, C), or (R, C) if ``index`` is None.
        index: row numbers of the values, int64 (n,) ascending; None means all R rows in order.
        base: the value of each position that is not in ``index``.
        layout: the maps.
    """

    values: Tensor
    index: Tensor | None
    base: float
    layout: RowLayout

    @classmethod
    def of_maps(cls, maps: Sequence[Tensor]) -> RowValues:
        """Values of L maps (N, C, H, W), in which every position has its own."""
        layout = RowLayout.of(maps)
        return cls(layout.flatten(maps), None, 0.0, layout)

    def dense(self) -> Tensor:
        """Values of all positions, (R, C)."""
        if self.index is None:
            return self.values
        table = self.values.new_full((self.layout.num_rows, self.values.shape[1]), self.base)
        return table.index_copy(0, self.index, self.values)

    def maps(self) -> list[Tensor]:
        """Values of all positions as L maps (N, C, H, W)."""
        return self.layout.maps(self.dense())

    def per_image(self) -> Tensor:
        """Values of all positions by image: (N, H*W of all levels, C); the N of all maps must be equal."""
        parts = self.dense().split(self.layout.map_sizes)
        return torch.cat([part.view(n, h * w, -1) for part, (n, h, w) in zip(parts, self.layout.shapes)], dim=1)

    def per_segment(self) -> list[tuple[Tensor, Tensor]]:
        """Positions within the segment (m,), row-major, and their values (m, C), for each segment in row order."""
        sizes = self.layout.segment_sizes
        if self.index is None:
            positions = [torch.arange(size, device=self.values.device) for size in sizes]
            return list(zip(positions, self.values.split(sizes)))
        segment = self.layout.segment_of(self.index)
        starts = constant(running_sums(sizes), segment.device)
        counts = torch.bincount(segment, minlength=len(sizes)).tolist()
        local = self.index - starts[segment]
        return list(zip(local.split(counts), self.values.split(counts)))

    def at(self, rows: Tensor | None) -> Tensor:
        """Values at the given row numbers (m,), or at all of them if None: (m, C)."""
        if rows is None:
            return self.dense()
        if self.index is None:
            return self.values[rows]
        # slot of each row in `values`; rows without one share the last slot, which holds the base value
        slot = torch.full((self.layout.num_rows,), len(self.index), device=rows.device)
        slot[self.index] = torch.arange(len(self.index), device=rows.device)
        padded = torch.cat([self.values, self.values.new_full((1, self.values.shape[1]), self.base)])
        return padded[slot[rows]]


def rows_of(x: Tensor) -> Tensor:
    """Rows (N*H*W, C) of a map (N, C, H, W): a view if it is in channels-last order."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def running_sums(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where each part begins in the concatenation, and behind them the total."""
    return (0, *itertools.accumulate(sizes))


def constant(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Tensor of a few numbers that the host knows, for which a GPU's host does not wait."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def to_host(values: Tensor) -> list[Any]:
    """Numbers of a tensor as a list; the only place where sparse inference makes a GPU's host wait."""
    return values.tolist()


# Chunks of positions


def slices(count: int, step: int) -> Iterator[slice]:
    """Cut ``count`` things into slices of ``step``, the last one shorter."""
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def chunk_rows(device: torch.device, channels: int) -> int:
    """Positions of one chunk on a device, of maps with so many channels."""
    return max(CHUNK_NUMBERS[device.type] // channels, 1) if device.type in CHUNK_NUMBERS else DEFAULT_CHUNK_ROWS


def even_rows(count: int, device: torch.device) -> int:
    """How many positions are computed where ``count`` are wanted: as many, or a few more (see ``ROW_STEP``)."""
    step = ROW_STEP.get(device.type, 1)
    return -(-count // step) * step


def to_even_rows(numbers: Tensor) -> Tensor:
    """Row numbers of some positions (k, T) for :func:`even_rows` of them, the last position repeated."""
    missing = even_rows(len(numbers), numbers.device) - len(numbers)
    return torch.cat([numbers, numbers[-1:].expand(missing, -1)]) if missing else numbers


# Neighborhoods


class TableRows:
    """Neighborhoods in a table (m + 1, C) whose last row is zeros.

    Args:
        table: it may change between two calls of :meth:`columns`.
        capacity: most rows of one call.
    """

    def __init__(self, table: Tensor, capacity: int) -> None:
        self.dtype = table.dtype
        self._table = table
        self._buffer = table.new_empty((capacity, table.shape[1]))

    def columns(self, numbers: Tensor) -> Tensor:
        """Rows with the given numbers (k, T), those of a position side by side: (k, T * C).

        The next call overwrites the result.
        """
        out = self._buffer[: numbers.numel()]
        return torch.index_select(self._table, 0, numbers.reshape(-1), out=out).view(len(numbers), -1)
