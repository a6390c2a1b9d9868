"""The layers of a sparse tower at active rows: on a CPU in pieces that stay in its cache, on a GPU at once.

What is computed, and why this suffices: ``layers/sparse/tower.py``, ``layers/sparse/inference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from d2_ext.layers.sparse.context_norm import ChannelMoments, GroupStatistics
from d2_ext.layers.sparse.conv import Epilogue, gather_conv
from d2_ext.layers.sparse.linear import compute_dtype, row_linear, tap_major
from d2_ext.layers.sparse.neighbourhoods import MapRows, RowSource, TableRows
from d2_ext.layers.sparse.rows import RowLayout
from d2_ext.layers.sparse.winograd import WINDOW
from d2_ext.layers.sparse.work import Job, Work, cost_of_a_tile

import torch
from torch import Tensor

if TYPE_CHECKING:
    from d2_ext.layers.sparse.tower import ContextSparseTower

# Rows of G made at a time on a CPU: a piece and its source (1024 * 512 floats = 2 MB each) stay in the cache.
CONTEXT_ROWS = 1024


def run_layers(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Run the layers of a tower at some rows.

    Args:
        tower: its weights.
        layout: of the maps.
        maps: L maps (N, C, H, W).
        rows: row numbers of each layer, ascending, and last those of the predictions; each a subset of those before,
            on a GPU all the same.

    Returns:
        The table (m + 1, C) that the predictions read, its last row zeros; and where in it the 3x3 neighbourhood of
        each prediction is, (n, 9).
    """
    run = _layers_on_cpu if rows[0].device.type == "cpu" else _layers_on_gpu
    return run(tower, layout, maps, rows)


def _layers_on_cpu(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Run the layers on a table of those rows that are read; see ``run_layers``."""
    dtype = compute_dtype(maps[0])
    sources = [rows_of(x) for x in maps]
    tile_cost = cost_of_a_tile(maps[0])
    first = work = Work.of(layout, rows[0], tile_cost)
    read = first.rows_read(layout.num_rows)
    place = torch.full((layout.num_rows + 1,), len(read))  # of each row in the table
    place[read] = torch.arange(len(read))
    start = _begin_on_cpu(tower, layout, sources, read, place[first.index])
    source: RowSource = MapRows(sources, layout, first.capacity, dtype)
    memory = maps[0].new_empty(first.has_tiles * WINDOW**2 * tower.layers[0].conv.weight[..., 0, 0].numel())
    for number, (layer, layer_rows) in enumerate(zip(tower.layers, rows)):
        if len(layer_rows) < len(work.index):
            work = Work.of(layout, layer_rows, tile_cost)
        if number == 1:
            source = TableRows(start.state, first.capacity, place)
        pick = _positions_in(first.index, work.index)
        scale, shift = layer.norm.affine(start.statistics)
        finish = Epilogue(scale, shift, layout.segment_of(work.index), start.context[pick])
        convolved = work.convolved(source, layer.conv, memory)
        _overwrite(start.state, place[work.index], ((job, finish(y, job.part)) for job, y in convolved), work.jobs)
    return start.state, place[layout.neighbours(rows[-1])]


def _overwrite(state: Tensor, place: Tensor, results: Iterable[tuple[Job, Tensor]], jobs: Sequence[Job]) -> None:
    """Write the results of a layer into the table that it perhaps reads: a row when no job is left that reads it.

    Args:
        state: the table.
        place: of the computed positions in it.
        results: each job with its values.
        jobs: all of them, by ascending lowest row that they read.
    """
    waiting: list[tuple[Job, Tensor]] = []
    still_read = [*(job.lowest for job in jobs[1:]), math.inf]  # from here on, by the later jobs
    for result, lowest in zip(results, still_read):
        waiting.append(result)
        for job, values in waiting:
            if job.highest < lowest:
                state.index_copy_(0, place[job.part], values)
        waiting = [entry for entry in waiting if entry[0].highest >= lowest]


def _layers_on_gpu(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Run the layers at all active rows, on a table of all rows; see ``run_layers``."""
    index = rows[0]
    neighbours = layout.neighbours(index)
    features, start = _begin_on_gpu(tower, layout, maps, index)
    segment = layout.segment_of(index)
    table = features
    for layer in tower.layers:
        scale, shift = layer.norm.affine(start.statistics)
        finish = Epilogue(scale, shift, segment, start.context)
        values = gather_conv(table, neighbours, layer.conv, finish)
        table = start.state.index_copy_(0, index, values)
    return table, neighbours


@dataclass(frozen=True)
class _Start:
    """What the layers begin with.

    Attributes:
        state: the table (m + 1, C) that the later layers read: ReLU(G), and a row of zeros.
        context: G at the active rows (n, C), in the order in which they are computed.
        statistics: of G, by segment.
    """

    state: Tensor
    context: Tensor
    statistics: GroupStatistics


def _begin_on_cpu(
    tower: ContextSparseTower, layout: RowLayout, sources: Sequence[Tensor], read: Tensor, active: Tensor
) -> _Start:
    """Make G piece by piece; keep its statistics and the rows that are read later.

    Args:
        tower: its weights.
        layout: of the maps.
        sources: rows (N*H*W, C) of the L maps.
        read: row numbers (m,) of the table's rows, ascending.
        active: where in the table the active rows are (n,).
    """
    dtype = compute_dtype(sources[0])
    conv, norm = tower.context_conv, tower.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    table = sources[0].new_empty((len(read) + 1, conv.out_channels), dtype=dtype)
    pieces = _pieces(layout, sources)
    bounds = torch.searchsorted(read, torch.tensor([start for _, start, _ in pieces] + [layout.num_rows])).tolist()
    moments: list[list[ChannelMoments]] = [[] for _ in layout.segment_sizes]
    for (segment, start, source), (a, b) in zip(pieces, pairwise(bounds)):
        g = row_linear(source.to(dtype), weight, bias)
        torch.index_select(g, 0, read[a:b] - start, out=table[a:b])
        moments[segment].append(ChannelMoments.consume(g))
    statistics = [norm.merged_statistics(parts) for parts in moments]
    table[-1] = 0
    context = table.index_select(0, active)
    return _Start(table.relu_(), context, GroupStatistics(*(torch.cat(x) for x in zip(*statistics))))


def _begin_on_gpu(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], index: Tensor
) -> tuple[Tensor, _Start]:
    """Make G map by map, in tables of all rows; the first result is the table (R + 1, C) of the input."""
    dtype = compute_dtype(maps[0])
    conv, norm = tower.context_conv, tower.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    features, table = (maps[0].new_empty((layout.num_rows + 1, conv.in_channels), dtype=dtype) for _ in range(2))
    statistics = []
    for x, (a, b) in zip(maps, pairwise(layout.map_starts)):
        features[a:b] = rows_of(x)
        table[a:b] = row_linear(features[a:b], weight, bias)
        statistics.append(norm.statistics(table[a:b].view(x.shape[0], -1, conv.out_channels)))
    features[-1], table[-1] = 0, 0
    context = table.index_select(0, index)
    return features, _Start(table.relu_(), context, GroupStatistics(*(torch.cat(x) for x in zip(*statistics))))


def _pieces(layout: RowLayout, sources: Sequence[Tensor]) -> list[tuple[int, int, Tensor]]:
    """Cut the rows of the maps into pieces of few rows: segment number, row number of the first row, rows (k, C)."""
    pieces, start = [], 0
    images = (image for rows, (_, h, w) in zip(sources, layout.shapes) for image in rows.split(h * w))
    for segment, image in enumerate(images):
        for piece in image.split(CONTEXT_ROWS):
            pieces.append((segment, start, piece))
            start += len(piece)
    return pieces


def rows_of(x: Tensor) -> Tensor:
    """Rows (N*H*W, C) of a map (N, C, H, W)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _positions_in(index: Tensor, subset: Tensor) -> Tensor | slice:
    """Where the row numbers ``subset`` stand in ``index``; the full slice stands for everywhere."""
    if subset is index:
        return slice(None)
    ordered, order = index.sort()
    return order[torch.searchsorted(ordered, subset)]
