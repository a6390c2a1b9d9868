"""The layers of a sparse tower at active rows: on a CPU in pieces that stay in its cache, on a GPU at once.

What is computed, and why this suffices: ``layers/sparse_tower.py``, ``layers/sparse_inference.py``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from d2_ext.layers.context_norm import ChannelMoments, GroupStatistics
from d2_ext.layers.levels import RowLayout
from d2_ext.layers.neighbourhoods import MapNeighbourhoods, Neighbourhoods, Stencil, TableNeighbourhoods, chunk_rows
from d2_ext.layers.row_linear import compute_dtype, row_linear, tap_major
from d2_ext.layers.sparse_conv import Epilogue, convolved_chunks, gather_conv

import torch
from torch import Tensor

if TYPE_CHECKING:
    from d2_ext.layers.sparse_tower import ContextSparseTower

# Rows of G made at a time on a CPU: a piece and its source (1024 * 512 floats = 2 MB each) stay in the cache.
CONTEXT_ROWS = 1024


def run_layers(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil, rows: Sequence[Tensor]
) -> Tensor:
    """Run the layers of a tower at some rows.

    Args:
        tower: its weights.
        layout: of the maps.
        maps: L maps (N, C, H, W).
        stencil: of the rows of the first layer.
        rows: row numbers of each layer, a subset of those of the layer before; on a GPU all the same.

    Returns:
        The table (m + 1, C), see ``Stencil``, that the predictions read.
    """
    run = _layers_on_cpu if stencil.index.device.type == "cpu" else _layers_on_gpu
    return run(tower, layout, maps, stencil, rows)


def _layers_on_cpu(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil, rows: Sequence[Tensor]
) -> Tensor:
    """Run the layers at their ``rows``; the result is the table (m + 1, C) that the predictions read."""
    start = _begin_on_cpu(tower, layout, maps, stencil)
    segment = layout.segment_of(stencil.index)
    source: Neighbourhoods = MapNeighbourhoods([rows_of(x) for x in maps], layout, stencil.index, start.state.dtype)
    for number, (layer, layer_rows) in enumerate(zip(tower.layers, rows)):
        pick = positions_in(stencil.index, layer_rows)
        neighbours, centre = stencil.neighbours[pick], stencil.centre[pick]
        free: Iterable[int] = itertools.repeat(len(centre))  # the first layer reads the maps
        if number > 0:
            source, free = TableNeighbourhoods(start.state, neighbours), _free_after_chunks(neighbours, centre)
        scale, shift = layer.norm.affine(start.statistics)
        finish = Epilogue(scale, shift, segment[pick], start.context[pick])
        waiting: deque[tuple[slice, Tensor]] = deque()
        for (part, y), writable in zip(convolved_chunks(source, layer.conv), free):
            waiting.append((part, finish(y, part)))
            while waiting and waiting[0][0].stop <= writable:
                done, values = waiting.popleft()
                start.state.index_copy_(0, centre[done], values)
    return start.state


def _free_after_chunks(neighbours: Tensor, centre: Tensor) -> list[int]:
    """How many of the positions may be overwritten after each chunk, because no later one reads them."""
    lowest = neighbours.amin(1).flip(0).cummin(0).values.flip(0)  # number that this or any later position reads
    starts = lowest[chunk_rows(centre.device) :: chunk_rows(centre.device)]
    return [*torch.searchsorted(centre.contiguous(), starts).tolist(), len(centre)]


def _layers_on_gpu(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil, rows: Sequence[Tensor]
) -> Tensor:
    """Run the layers at all active rows; the result is the table (R + 1, C) that the predictions read."""
    features, start = _begin_on_gpu(tower, layout, maps, stencil)
    segment = layout.segment_of(stencil.index)
    table = features
    for layer in tower.layers:
        scale, shift = layer.norm.affine(start.statistics)
        finish = Epilogue(scale, shift, segment, start.context)
        values = gather_conv(table, stencil.neighbours, layer.conv, finish)
        table = start.state.index_copy_(0, stencil.index, values)
    return table


@dataclass(frozen=True)
class _Start:
    """What the layers begin with.

    Attributes:
        state: the table (m + 1, C) that the later layers read: ReLU(G), and a row of zeros.
        context: G at the active rows, (n, C).
        statistics: of G, by segment.
    """

    state: Tensor
    context: Tensor
    statistics: GroupStatistics


def _begin_on_cpu(tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil) -> _Start:
    """Make G piece by piece; keep its statistics and the rows that are read later."""
    dtype, rows = compute_dtype(maps[0]), stencil.rows
    assert rows is not None, "a stencil on a CPU names its rows"
    conv, norm = tower.context_conv, tower.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    table = maps[0].new_empty((len(rows) + 1, conv.out_channels), dtype=dtype)
    sources = [rows_of(x) for x in maps]
    pieces = _pieces(layout, sources)
    bounds = torch.searchsorted(rows, torch.tensor([start for _, start, _ in pieces] + [layout.num_rows])).tolist()
    moments: list[list[ChannelMoments]] = [[] for _ in layout.segment_sizes]
    for (segment, start, source), (a, b) in zip(pieces, pairwise(bounds)):
        g = row_linear(source.to(dtype), weight, bias)
        torch.index_select(g, 0, rows[a:b] - start, out=table[a:b])
        moments[segment].append(ChannelMoments.consume(g))
    statistics = [norm.merged_statistics(parts) for parts in moments]
    table[-1] = 0
    context = table.index_select(0, stencil.centre)
    return _Start(table.relu_(), context, GroupStatistics(*(torch.cat(x) for x in zip(*statistics))))


def _begin_on_gpu(
    tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil
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
    context = table.index_select(0, stencil.index)
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


def positions_in(index: Tensor, subset: Tensor) -> Tensor | slice:
    """Where the row numbers ``subset`` stand in ``index``, both ascending; the full slice stands for everywhere."""
    return slice(None) if len(index) == len(subset) else torch.searchsorted(index, subset)
