"""Inference of a context-enhanced sparse tower: only the active rows of its layers are computed.

What the tower computes is defined in ``tower.py``; letters and tables in ``rows.py``. All maps and images are worked on
together, because they share the weights (on a CPU, maps with many active rows alone):

1. The numbers of active positions decide which maps are computed densely, together, or alone. A GPU's host waits for
   them, and for nothing else.
2. The rows that each layer must compute follow from the rows that are wanted at the end.
3. The point-wise map G is made piece by piece. A piece gives its share of the statistics, and the rows that will be
   read later, which make up the table; then it is forgotten. On a GPU the table holds all rows.
4. Each layer gathers the neighborhoods of the active rows, multiplies, normalizes, adds G, and overwrites these rows of
   the table as soon as no neighborhood that holds them is still to be gathered. The first layer gathers from the
   feature maps.
5. The prediction layers gather and multiply.

On a CPU, neighboring active rows are computed together where that is faster (``work.py``), up to a map that is active
everywhere. Where that does not work (16-bit, few channels, GPU), a map that is active nearly everywhere is computed
densely, by the definition's own steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from d2_ext.layers.sparse.context_norm import (
    ChannelMoments,
    ContextLayer,
    Epilogue,
    GroupStatistics,
    at_least_float32,
)
from d2_ext.layers.sparse.conv import active_rows, gather_conv
from d2_ext.layers.sparse.linear import compute_dtype, row_linear, tap_major
from d2_ext.layers.sparse.rows import MapRows, RowLayout, RowSource, TableRows, rows_of, running_sums, to_host
from d2_ext.layers.sparse.winograd import WINDOW
from d2_ext.layers.sparse.work import Job, Work, cost_of_a_tile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A map with a larger active share than this is computed densely where tiles do not pay; see projects/CEASC/README.md.
DENSE_SHARE = {"cpu": 0.9}
DEFAULT_DENSE_SHARE = 0.5
ALONE_ROWS = 4096  # active positions from which on a map is computed alone
# Rows of G made at a time on a CPU: a piece and its source (1024 * 512 floats = 2 MB each) stay in the cache.
CONTEXT_ROWS = 1024

ActivePredictions = tuple[Tensor, dict[str, Tensor]]  # row numbers (n,), ascending; by name the values (n, C')


@dataclass(frozen=True)
class TowerWeights:
    """What inference needs of a tower.

    Attributes:
        context: the point-wise convolution that makes G.
        layers: 3x3 convolution and CE-GN each.
        predictors: 3x3 convolutions by name.
    """

    context: nn.Conv2d
    layers: Sequence[ContextLayer]
    predictors: Mapping[str, nn.Conv2d]


def predict_active_rows(
    weights: TowerWeights, maps: Sequence[Tensor], masks: Sequence[Tensor], needed: Sequence[Tensor] | None
) -> ActivePredictions:
    """Predict at the active positions of L maps (N, C, H, W), or at those of them that are needed.

    Args:
        weights: of the tower.
        maps: fastest in channels-last order, in which their rows are views.
        masks: (N, 1, H, W) each.
        needed: masks; predictions are wanted where both masks are 1. None: at all active positions.
    """
    # 1. How the maps are computed. On a CPU a map with many active positions is computed alone, where that costs no
    #    time, so that not all maps need memory at once; the others together, because they share the weights.
    layout, on_cpu = RowLayout.of(maps), maps[0].device.type == "cpu"
    counts = to_host(torch.stack([torch.count_nonzero(mask) for mask in masks]))
    limit = dense_share(maps[0])
    full = [i for i, count in enumerate(counts) if count > limit * layout.map_sizes[i]]
    alone = [i for i, count in enumerate(counts) if i not in full and on_cpu and count > ALONE_ROWS]
    together = [i for i in range(len(maps)) if i not in full and i not in alone]
    parts = {i: predict_full_map(weights, maps[i], masks[i], counts[i]) for i in full}
    for group in [[i] for i in alone] + ([together] if together else []):
        wanted = None if needed is None else [needed[i] for i in group]
        index, values = predict_gathered(
            weights, [maps[i] for i in group], [masks[i] for i in group], [counts[i] for i in group], wanted
        )
        if len(group) == len(maps):
            return index, values
        starts = RowLayout.of([maps[i] for i in group]).map_starts
        bounds: Sequence[int] = running_sums([counts[i] for i in group])
        if len(index) != bounds[-1]:  # only what is needed, and on a CPU
            bounds = torch.searchsorted(index, torch.tensor(starts)).tolist()
        for i, start, (a, b) in zip(group, starts, pairwise(bounds)):
            parts[i] = index[a:b] - start, {name: rows[a:b] for name, rows in values.items()}
    ordered = [parts[i] for i in range(len(maps))]
    return (
        torch.cat([index + start for (index, _), start in zip(ordered, layout.map_starts)]),
        {name: torch.cat([values[name] for _, values in ordered]) for name in weights.predictors},
    )


def dense_share(x: Tensor) -> float:
    """A map like x (N, C, H, W) with a larger active share is computed densely."""
    if cost_of_a_tile(x) is not None:
        return 1.0  # then a full map consists of tiles, which are faster
    return DENSE_SHARE.get(x.device.type, DEFAULT_DENSE_SHARE)


def predict_full_map(weights: TowerWeights, x: Tensor, mask: Tensor, count: int) -> ActivePredictions:
    """Compute one map (N, C, H, W) densely, in place where possible, and take its active rows, ``count`` of them."""
    context = weights.context(x)
    statistics = weights.layers[0].norm.statistics(context.flatten(2).transpose(1, 2))
    for layer in weights.layers:
        scale, shift = (v[:, :, None, None] for v in layer.norm.affine(statistics))
        y = at_least_float32(layer.conv(x))
        x = y.mul_(scale).add_(shift).mul_(mask).add_(context).relu_().to(context.dtype)
    index = active_rows([mask], count)
    return index, {name: rows_of(conv(x))[index] for name, conv in weights.predictors.items()}


def predict_gathered(
    weights: TowerWeights,
    maps: Sequence[Tensor],
    masks: Sequence[Tensor],
    counts: Sequence[int],
    needed: Sequence[Tensor] | None,
) -> ActivePredictions:
    """Compute the active rows of all maps together; ``counts`` are the maps' active positions."""
    layout, on_cpu = RowLayout.of(maps), maps[0].device.type == "cpu"
    # 2. Row numbers that each layer computes, and last those of the predictions. A prediction reads the last layer at
    #    its 3x3 neighbors, these the layer before at theirs, and so on. Finding the rows of each layer makes a GPU
    #    wait, so there all layers compute all active rows.
    if needed is None or not on_cpu:
        rows = [active_rows(masks, sum(counts))] * (len(weights.layers) + 1)
    else:
        wanted = [mask * need for mask, need in zip(masks, needed)]
        rows = [active_rows(wanted)]
        for _ in weights.layers:
            wanted = [mask * F.max_pool2d(w, 3, stride=1, padding=1) for mask, w in zip(masks, wanted)]
            rows.insert(0, active_rows(wanted))
    if len(rows[0]) == 0:
        none = maps[0].new_empty(0, dtype=compute_dtype(maps[0]))
        return rows[0], {name: none.view(0, conv.out_channels) for name, conv in weights.predictors.items()}
    # 3, 4. The table that the predictions read, and where in it their neighborhoods are.
    table, neighbors = (_layers_on_cpu if on_cpu else _layers_on_gpu)(weights, layout, maps, rows)
    # 5. The predictions.
    return rows[-1], {name: gather_conv(table, neighbors, conv) for name, conv in weights.predictors.items()}


def _layers_on_cpu(
    weights: TowerWeights, layout: RowLayout, maps: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Run the layers on a table of those rows that are read.

    Args:
        weights: of the tower.
        layout: of the maps.
        maps: L maps (N, C, H, W).
        rows: row numbers of each layer, ascending, and last those of the predictions; each a subset of those before.

    Returns:
        The table (m + 1, C) that the predictions read, its last row zeros; and where in it the 3x3 neighborhood of
        each prediction is, (n, 9).
    """
    dtype = compute_dtype(maps[0])
    sources = [rows_of(x) for x in maps]
    tile_cost = cost_of_a_tile(maps[0])
    # The table holds the rows that the first layer reads; later layers read some of them.
    first = work = Work.of(layout, rows[0], tile_cost)
    read = first.rows_read(layout.num_rows)
    place = torch.full((layout.num_rows + 1,), len(read))  # of each row in the table
    place[read] = torch.arange(len(read))
    table, statistics = _context_on_cpu(weights, layout, sources, read)
    context = table.index_select(0, place[first.index])  # G at the active rows, in the order of their computation
    table.relu_()
    source: RowSource = MapRows(sources, layout, first.capacity, dtype)
    memory = maps[0].new_empty(first.has_tiles * WINDOW**2 * weights.layers[0].conv.weight[..., 0, 0].numel())
    for number, (layer, layer_rows) in enumerate(zip(weights.layers, rows)):
        if len(layer_rows) < len(work.index):
            work = Work.of(layout, layer_rows, tile_cost)
        if number == 1:
            source = TableRows(table, first.capacity, place)
        own_context = context
        if work is not first:
            ordered, order = first.index.sort()
            own_context = context[order[torch.searchsorted(ordered, work.index)]]
        finish = Epilogue(*layer.norm.affine(statistics), layout.segment_of(work.index), own_context)
        # The results go into the table that the layer perhaps reads: each when no job is left that reads its rows.
        computed = place[work.index]  # where in the table
        still_read = [*(job.lowest for job in work.jobs[1:]), math.inf]  # from here on, by the later jobs
        waiting: list[tuple[Job, Tensor]] = []
        for (current, y), lowest in zip(work.convolved(source, layer.conv, memory), still_read):
            waiting.append((current, finish(y, current.part)))
            for job, values in waiting:
                if job.highest < lowest:
                    table.index_copy_(0, computed[job.part], values)
            waiting = [entry for entry in waiting if entry[0].highest >= lowest]
    return table, place[layout.neighbors(rows[-1])]


def _context_on_cpu(
    weights: TowerWeights, layout: RowLayout, sources: Sequence[Tensor], read: Tensor
) -> tuple[Tensor, GroupStatistics]:
    """Make G piece by piece; keep its statistics and the rows that are read later.

    Args:
        weights: of the tower.
        layout: of the maps.
        sources: rows (N*H*W, C) of the L maps.
        read: row numbers (m,) of the table's rows, ascending.

    Returns:
        The table (m + 1, C) of G at these rows, its last row zeros; and the statistics of G, by segment.
    """
    dtype = compute_dtype(sources[0])
    conv, norm = weights.context, weights.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    table = sources[0].new_empty((len(read) + 1, conv.out_channels), dtype=dtype)
    table[-1] = 0
    images = (image for rows, (_, h, w) in zip(sources, layout.shapes) for image in rows.split(h * w))
    pieces = [(segment, piece) for segment, image in enumerate(images) for piece in image.split(CONTEXT_ROWS)]
    starts = running_sums([len(piece) for _, piece in pieces])
    bounds = torch.searchsorted(read, torch.tensor(starts)).tolist()
    moments: list[list[ChannelMoments]] = [[] for _ in layout.segment_sizes]
    for (segment, piece), start, (a, b) in zip(pieces, starts, pairwise(bounds)):
        g = row_linear(piece.to(dtype), weight, bias)
        torch.index_select(g, 0, read[a:b] - start, out=table[a:b])
        moments[segment].append(ChannelMoments.consume(g))
    return table, GroupStatistics.join([norm.merged_statistics(parts) for parts in moments])


def _layers_on_gpu(
    weights: TowerWeights, layout: RowLayout, maps: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Run the layers at all active rows, on a table of all rows; see :func:`_layers_on_cpu`."""
    index = rows[0]
    neighbors, segment = layout.neighbors(index), layout.segment_of(index)
    dtype = compute_dtype(maps[0])
    conv, norm = weights.context, weights.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    features, table = (maps[0].new_empty((layout.num_rows + 1, conv.in_channels), dtype=dtype) for _ in range(2))
    parts = []
    for x, (a, b) in zip(maps, pairwise(layout.map_starts)):
        features[a:b] = rows_of(x)
        table[a:b] = row_linear(features[a:b], weight, bias)
        parts.append(norm.statistics(table[a:b].view(x.shape[0], -1, conv.out_channels)))
    features[-1], table[-1] = 0, 0
    statistics = GroupStatistics.join(parts)
    context = table.index_select(0, index)  # G at the active rows
    table.relu_()
    source = features  # of the first layer
    for layer in weights.layers:
        finish = Epilogue(*layer.norm.affine(statistics), segment, context)
        source = table.index_copy_(0, index, gather_conv(source, neighbors, layer.conv, finish))
    return table, neighbors
