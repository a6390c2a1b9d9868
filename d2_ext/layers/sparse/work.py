"""In which order, and how, the active positions of a layer are computed on a CPU.

Neighboring active positions share work: a 2x2 tile in which three or four of them lie costs less as a whole, by
Winograd's convolution (``winograd.py``), than they do one by one. So the positions are split: those of such rich tiles,
tile by tile, and the others, each with its own 3x3 neighborhood. A map that is active everywhere consists of rich tiles
only. Letters and tables: ``rows.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from d2_ext.layers.sparse.linear import compute_dtype, row_linear, tap_major, uses_onednn
from d2_ext.layers.sparse.rows import TAPS, RowLayout, TableRows, even_rows, slices, to_even_rows
from d2_ext.layers.sparse.winograd import WINDOW, convolve_tiles, tile_kernel

import torch
from torch import Tensor, nn

# What a tile costs, in positions that are computed one by one, by the number of channels from which on it holds; below
# the smallest one tiles do not pay. Measured on an AMD EPYC (Zen 5), float32: 512 channels on two threads, as in
# projects/CEASC/README.md, 256 on one thread of a busy machine.
TILE_COST = {256: 2.6, 512: 2.3}
# What the transformation of a kernel costs, in the same unit: all its terms grow with the square of the channels.
KERNEL_COST = 260
CHUNK_TILES = 192  # their windows (192 * 16 * 512 floats = 6.3 MB) stay in the cache


@dataclass(frozen=True)
class Job:
    """A chunk of positions that is convolved at once.

    Attributes:
        part: of the positions of the work.
        numbers: rows of the source (k, T) that are read; there may be a few more positions or tiles than are wanted.
        outputs: which of the 4 * k outputs of k tiles are wanted; None: the first outputs of k single positions.
        lowest: row number that is read; highest: row number that is computed.
    """

    part: slice
    numbers: Tensor
    outputs: Tensor | None
    lowest: int
    highest: int

    @classmethod
    def of(cls, index: Tensor, part: slice, numbers: Tensor, outputs: Tensor | None) -> Job:
        """The job on ``part`` of the row numbers ``index``."""
        return cls(part, numbers, outputs, int(numbers.min()), int(index[part].max()))


@dataclass(frozen=True)
class Work:
    """Positions to convolve.

    Attributes:
        index: row numbers (n,), in the order of the work.
        jobs: by ascending lowest row number that they read; together they cover the positions.
        chunk: most positions that a job computes one by one.
    """

    index: Tensor
    jobs: list[Job]
    chunk: int

    @classmethod
    def of(cls, layout: RowLayout, index: Tensor, chunk: int, tile_cost: float | None) -> Work:
        """Plan the work on the rows ``index`` (n,), ascending; see ``chunk_rows`` and :func:`cost_of_a_tile`."""
        # 1. Which tiles are rich: each saves the positions above its cost, all together more than their kernel costs.
        rich = torch.zeros(len(index), dtype=torch.bool)
        if tile_cost is not None:
            corners, slots = layout.tiles(index)
            corners, tile, counts = corners.unique(return_inverse=True, return_counts=True)
            saved = counts - tile_cost
            rich_tiles = saved > 0
            if saved[rich_tiles].sum() <= KERNEL_COST:
                rich_tiles = torch.zeros_like(rich_tiles)
            rich = rich_tiles[tile]
        tiled, single = rich.nonzero().squeeze(1), (~rich).nonzero().squeeze(1)
        jobs = []
        if len(tiled):
            # 2. Their positions, tile by tile, and the window of 4x4 rows that each tile reads.
            tile = rich_tiles.cumsum(0).sub_(1)[tile[tiled]]  # numbered among the rich ones
            tile, order = tile.sort(stable=True)
            tiled = tiled[order]
            windows = layout.neighbors(corners[rich_tiles], range(-1, WINDOW - 1))
        index = index[torch.cat([tiled, single])]
        if len(tiled):
            for some in slices(len(windows), CHUNK_TILES):
                start, stop = torch.searchsorted(tile, torch.tensor([some.start, some.stop])).tolist()
                numbers = to_even_rows(windows[some])
                outputs = slots[tiled[start:stop]] * len(numbers) + tile[start:stop] - some.start
                jobs.append(Job.of(index, slice(start, stop), numbers, outputs))
        # 3. The others one by one, in their order.
        for part in slices(len(single), chunk):
            part = slice(part.start + len(tiled), part.stop + len(tiled))
            jobs.append(Job.of(index, part, to_even_rows(layout.neighbors(index[part])), None))
        return cls(index, sorted(jobs, key=lambda job: job.lowest), chunk)

    def moved(self, place: Tensor) -> Work:
        """The same work on a table that holds row number i at ``place[i]``."""
        jobs = [replace(job, numbers=place[job.numbers]) for job in self.jobs]
        return replace(self, jobs=jobs)

    @property
    def capacity(self) -> int:
        """Most rows that a job of this work reads, or one of the work on a part of its positions."""
        singles = even_rows(min(len(self.index), self.chunk), self.index.device) * TAPS
        return max(singles, *(job.numbers.numel() for job in self.jobs), 0)

    def rows_read(self, num_rows: int) -> Tensor:
        """Row numbers that any job reads, ascending; ``num_rows`` is the number for what lies outside the maps."""
        read = torch.zeros(num_rows + 1, dtype=torch.bool)
        for job in self.jobs:
            read[job.numbers.view(-1)] = True
        return read[:-1].nonzero().squeeze(1)

    @property
    def has_tiles(self) -> bool:
        """Whether any tile is computed as a whole."""
        return any(job.outputs is not None for job in self.jobs)

    def convolved(
        self, source: TableRows, conv: nn.Conv2d, memory: Tensor | None = None
    ) -> Iterator[tuple[Job, Tensor]]:
        """Convolve at the positions, job by job.

        Args:
            source: of the rows.
            conv: 3x3, stride 1, padding 1, one group; computed in the dtype of the source.
            memory: for the kernel of the tiles, see ``tile_kernel``.

        Yields:
            A job and the output (k, C') at its positions, still in the cache.
        """
        weight = conv.weight.to(source.dtype)
        bias = None if conv.bias is None else conv.bias.to(source.dtype)
        matrix = tap_major(weight)
        kernel = tile_kernel(weight, memory) if self.has_tiles else weight  # else no job is of tiles
        for job in self.jobs:
            columns = source.columns(job.numbers)
            if job.outputs is None:
                yield job, row_linear(columns, matrix, bias)[: job.part.stop - job.part.start]
            else:
                outputs = convolve_tiles(columns, kernel, bias)
                yield job, outputs.flatten(0, 1).index_select(0, job.outputs)


def cost_of_a_tile(x: Tensor) -> float | None:
    """Cost of a tile in maps like x (N, C, H, W), in positions computed one by one; None where tiles do not pay."""
    if compute_dtype(x) != torch.float32 or not uses_onednn(x):
        return None  # 16-bit sums of a window would be rounded before they are multiplied
    return next((cost for channels, cost in sorted(TILE_COST.items(), reverse=True) if x.shape[1] >= channels), None)
