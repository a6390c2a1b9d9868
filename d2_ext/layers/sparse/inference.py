"""Inference of a context-enhanced sparse tower: only the active rows of its layers are computed.

What the tower computes is defined in ``tower.py``; letters and tables in ``rows.py``. All maps and images are worked on
together, because they share the weights (on a CPU, maps with many active rows alone):

1. The numbers of active positions decide which maps are computed densely, together, or alone. A GPU's host waits for
   them, and for nothing else.
2. The rows that each layer must compute follow from the rows that are wanted at the end.
3. The point-wise map G is made only at the rows that a layer will read; they make up the table. Its statistics over
   all positions, for CE-GN, follow from the moments of the features, which both towers of a head share. On a GPU the
   table holds all rows.
4. Each layer gathers the neighborhoods of the active rows, multiplies, normalizes, adds G, and overwrites these rows of
   the table as soon as no neighborhood that holds them is still to be gathered. The first layer gathers from a table
   of the features.
5. The prediction layers gather and multiply, all of a tower at once.

On a CPU, neighboring active rows are computed together where that is faster (``work.py``), up to a map that is active
everywhere. Where that does not work (16-bit, few channels, GPU), a map that is active nearly everywhere is computed
densely, by the definition's own steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from d2_ext.layers.sparse.context_norm import FeatureMoments, GroupStatistics, at_least_float32
from d2_ext.layers.sparse.conv import active_rows, dilated, gather_conv
from d2_ext.layers.sparse.layer import ContextLayer
from d2_ext.layers.sparse.linear import compute_dtype, row_linear, tap_major
from d2_ext.layers.sparse.rows import (
    RowLayout,
    TableRows,
    chunk_rows,
    even_rows,
    rows_of,
    running_sums,
    slices,
    to_host,
)
from d2_ext.layers.sparse.winograd import WINDOW
from d2_ext.layers.sparse.work import Job, Work, cost_of_a_tile

import torch
from torch import Tensor, nn

# A map with a larger active share than this is computed densely where tiles do not pay; on a CPU by the number of
# channels from which on it holds. There the gathered rows cost as much as the dense map (projects/CEASC/README.md).
CPU_DENSE_SHARE = {0: 0.5, 128: 0.75}
GPU_DENSE_SHARE = 0.5
CONTEXT_ROWS = 4096  # rows of G made at a time on a CPU
ALONE_NUMBERS = 4096 * 512  # features of the active positions from which on a map is computed alone

ActivePredictions = tuple[Tensor, dict[str, Tensor]]  # row numbers (n,), ascending; by name the values (n, C')
MapMoments = Sequence[FeatureMoments]  # of the N images of a map


@dataclass(frozen=True)
class TowerWeights:
    """What inference needs of a tower.

    Attributes:
        context: the point-wise convolution that makes G.
        layers: 3x3 convolution and norm each.
        predictors: 3x3 convolutions by name.
    """

    context: nn.Conv2d
    layers: Sequence[ContextLayer]
    predictors: Mapping[str, nn.Conv2d]


def moments_of(maps: Sequence[Tensor]) -> list[MapMoments] | None:
    """Moments of L maps (N, C, H, W), for all towers with CE-GN; None on a GPU, where none asks for them."""
    if maps[0].device.type != "cpu":
        return None
    return [[FeatureMoments.of(rows_of(image[None])) for image in x] for x in maps]


def predict_active_rows(
    weights: TowerWeights,
    maps: Sequence[Tensor],
    masks: Sequence[Tensor],
    needed: Sequence[Tensor] | None,
    moments: Sequence[MapMoments] | None,
) -> ActivePredictions:
    """Predict at the active positions of L maps (N, C, H, W), or at those of them that are needed.

    Args:
        weights: of the tower.
        maps: fastest in channels-last order, in which their rows are views.
        masks: (N, 1, H, W) each.
        needed: masks; predictions are wanted where both masks are 1. None: at all active positions.
        moments: of the maps, see :func:`moments_of`.
    """
    # 1. How the maps are computed. On a CPU a map with many active positions is computed alone, where that costs no
    #    time, so that not all maps need memory at once; the others together, because they share the weights.
    layout, on_cpu = RowLayout.of(maps), maps[0].device.type == "cpu"
    counts = to_host(torch.stack([torch.count_nonzero(mask) for mask in masks]))
    limit = dense_share(maps[0])
    full = [i for i, count in enumerate(counts) if count > limit * layout.map_sizes[i]]
    many = ALONE_NUMBERS // maps[0].shape[1]
    alone = [i for i, count in enumerate(counts) if i not in full and on_cpu and count > many]
    together = [i for i in range(len(maps)) if i not in full and i not in alone]
    parts = {
        i: predict_full_map(weights, maps[i], masks[i], counts[i], None if moments is None else moments[i])
        for i in full
    }
    for group in [[i] for i in alone] + ([together] if together else []):
        wanted = None if needed is None else [needed[i] for i in group]
        index, values = predict_gathered(
            weights,
            [maps[i] for i in group],
            [masks[i] for i in group],
            [counts[i] for i in group],
            wanted,
            None if moments is None else [image for i in group for image in moments[i]],
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
    if x.device.type != "cpu":
        return GPU_DENSE_SHARE
    return max((least, share) for least, share in CPU_DENSE_SHARE.items() if x.shape[1] >= least)[1]


def predict_full_map(
    weights: TowerWeights, maps: Tensor, mask: Tensor, count: int, moments: MapMoments | None
) -> ActivePredictions:
    """Compute one map (N, C, H, W) densely and take its active rows, ``count`` of them."""
    conv, norm = weights.context, weights.layers[0].norm
    dtype = compute_dtype(maps)
    images = []
    for number, (x, active) in enumerate(zip(maps.split(1), mask.split(1))):
        context = at_least_float32(conv(x))
        if moments is None:
            statistics = norm.statistics(context.flatten(2).transpose(1, 2))
        else:
            weight, bias = conv.weight.flatten(1).to(dtype), conv.bias.to(dtype)
            statistics = norm.statistics_after(weight, bias, [moments[number]])
        for layer in weights.layers:
            x = layer.norm.after(layer.conv, x.to(dtype), statistics).mul_(active).add_(context).relu_().to(dtype)
        images.append(x)
    x = torch.cat(images) if len(images) > 1 else images[0]
    index = active_rows([mask], count)
    return index, {name: rows_of(conv(x))[index] for name, conv in weights.predictors.items()}


def predict_gathered(
    weights: TowerWeights,
    maps: Sequence[Tensor],
    masks: Sequence[Tensor],
    counts: Sequence[int],
    needed: Sequence[Tensor] | None,
    moments: Sequence[FeatureMoments] | None,
) -> ActivePredictions:
    """Compute the active rows of all maps together.

    Args:
        weights: of the tower.
        maps: L maps (N, C, H, W).
        masks: (N, 1, H, W) each.
        counts: active positions of each map.
        needed: see :func:`predict_active_rows`.
        moments: of all images of the maps; not asked for on a GPU.
    """
    layout, on_cpu = RowLayout.of(maps), maps[0].device.type == "cpu"
    # 2. Row numbers that each layer computes, and last those of the predictions. A prediction reads the last layer at
    #    its 3x3 neighbors, these the layer before at theirs, and so on. Finding the rows of each layer makes a GPU
    #    wait, so there all layers compute all active rows.
    if needed is None or not on_cpu:
        rows = [active_rows(masks, sum(counts))] * (len(weights.layers) + 1)
    else:
        active = [mask.bool() for mask in masks]
        wanted = [mask & need.bool() for mask, need in zip(active, needed)]
        rows = [active_rows(wanted)]
        for _ in weights.layers:
            wanted = [mask & dilated(w) for mask, w in zip(active, wanted)]
            rows.insert(0, active_rows(wanted))
    if len(rows[0]) == 0:
        none = maps[0].new_empty(0, dtype=compute_dtype(maps[0]))
        return rows[0], {name: none.view(0, conv.out_channels) for name, conv in weights.predictors.items()}
    # 3, 4. The table that the predictions read, and where in it their neighborhoods are.
    if on_cpu:
        table, neighbors = _layers_on_cpu(weights, layout, maps, rows, moments)
    else:
        table, neighbors = _layers_on_gpu(weights, layout, maps, rows)
    # 5. The predictions, which read the same neighborhoods.
    convs = weights.predictors.values()
    weight, bias = torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])
    values = gather_conv(table, neighbors, weight, bias).split([conv.out_channels for conv in convs], dim=1)
    return rows[-1], dict(zip(weights.predictors, values))


def _layers_on_cpu(
    weights: TowerWeights,
    layout: RowLayout,
    maps: Sequence[Tensor],
    rows: Sequence[Tensor],
    moments: Sequence[FeatureMoments] | None,
) -> tuple[Tensor, Tensor]:
    """Run the layers on a table of those rows that are read.

    Args:
        weights: of the tower.
        layout: of the maps.
        maps: L maps (N, C, H, W).
        rows: row numbers of each layer, ascending, and last those of the predictions; each a subset of those before.
        moments: of all images of the maps; None where no norm reads them.

    Returns:
        The table (m + 1, C) that the predictions read, its last row zeros; and where in it the 3x3 neighborhood of
        each prediction is, (n, 9).
    """
    # The tables hold the rows that the first layer reads, of the features and of G; later layers read some of them.
    chunk, tile_cost = chunk_rows(maps[0].device, maps[0].shape[1]), cost_of_a_tile(maps[0])
    planned = Work.of(layout, rows[0], chunk, tile_cost)
    read = planned.rows_read(layout.num_rows)
    place = torch.full((layout.num_rows + 1,), len(read))  # of each row in the tables
    place[read] = torch.arange(len(read))
    first = work = planned.moved(place)
    features = _rows_at(maps, layout, read)
    conv = weights.context
    weight, bias = tap_major(conv.weight.to(features.dtype)), conv.bias.to(features.dtype)
    statistics = weights.layers[0].norm.statistics_after(weight, bias, moments or ())
    # In pieces of few different sizes, for the reason that ROW_STEP gives; what is added lies behind the row of zeros.
    table = features.new_empty((len(features), conv.out_channels))
    for part in slices(len(features), CONTEXT_ROWS):
        table[part] = row_linear(features[part], weight, bias)
    table[len(read)] = 0
    context = table.index_select(0, place[first.index])  # G at the active rows, in the order of their computation
    table.relu_()
    source = TableRows(features, first.capacity)
    memory = maps[0].new_empty(first.has_tiles * WINDOW**2 * weights.layers[0].conv.weight[..., 0, 0].numel())
    for number, (layer, layer_rows) in enumerate(zip(weights.layers, rows)):
        if len(layer_rows) < len(work.index):
            work = Work.of(layout, layer_rows, chunk, tile_cost).moved(place)
        if number == 1:
            del features  # its memory goes with the source
            source = TableRows(table, first.capacity)
        own_context = context
        if work is not first:
            ordered, order = first.index.sort()
            own_context = context[order[torch.searchsorted(ordered, work.index)]]
        finish = layer.norm.epilogue(statistics, layout.segment_of(work.index), own_context)
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


def _rows_at(maps: Sequence[Tensor], layout: RowLayout, index: Tensor) -> Tensor:
    """Features of L maps (N, C, H, W) at some row numbers (m,), ascending, and then one or a few rows of zeros."""
    table = maps[0].new_empty((even_rows(len(index) + 1, maps[0].device), maps[0].shape[1]))
    bounds = torch.searchsorted(index, torch.tensor(layout.map_starts)).tolist()
    for x, start, (a, b) in zip(maps, layout.map_starts, pairwise(bounds)):
        torch.index_select(rows_of(x), 0, index[a:b] - start, out=table[a:b])
    table[len(index) :] = 0
    return table.to(compute_dtype(maps[0]))


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
        finish = layer.norm.epilogue(statistics, segment, context)
        source = table.index_copy_(0, index, gather_conv(source, neighbors, layer.conv.weight, layer.conv.bias, finish))
    return table, neighbors
