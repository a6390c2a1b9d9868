"""Inference of a context-enhanced sparse tower: only the active rows of its layers are computed.

What the tower computes is defined in ``layers/sparse_tower.py``; letters and tables in ``layers/levels.py``. All maps
and images are worked on together, because they share the weights:

1. The point-wise map G is made piece by piece. A piece gives its share of the statistics, and the rows that will be
   read later, which make up the table; then it is forgotten.
2. Each layer gathers the neighbourhoods of the active rows, multiplies, normalises, adds G, and overwrites these rows
   of the table as soon as no neighbourhood that holds them is still to be gathered. The first layer gathers from the
   feature maps.
3. The prediction layers gather and multiply.

On a GPU the table holds all rows, and the host waits once: for the numbers of active positions.

A map that is active nearly everywhere is computed densely instead, by the definition's own steps.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from d2_ext.layers.context_norm import ChannelMoments, GroupStatistics, at_least_float32
from d2_ext.layers.levels import RowLayout, running_sums, to_host
from d2_ext.layers.neighbourhoods import MapNeighbourhoods, Neighbourhoods, Stencil, TableNeighbourhoods, chunk_rows
from d2_ext.layers.row_linear import compute_dtype, row_linear, tap_major
from d2_ext.layers.sparse_conv import active_rows, convolved_chunks, gather_conv

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from d2_ext.layers.sparse_tower import ContextSparseTower

# A map with a larger active share than this is computed densely; see the measurements in results/.
DENSE_SHARE = {"cpu": 0.9}
DEFAULT_DENSE_SHARE = 0.5
# Rows of G made at a time on a CPU: a piece and its source (1024 * 512 floats = 2 MB each) stay in the cache.
CONTEXT_ROWS = 1024

ActivePredictions = tuple[Tensor, dict[str, Tensor]]  # row numbers (n,), ascending; by name the values (n, C')


def predict_active_rows(
    tower: ContextSparseTower, maps: Sequence[Tensor], masks: Sequence[Tensor], needed: Sequence[Tensor] | None
) -> ActivePredictions:
    """Predict at the active positions of L maps (N, C, H, W), or at those of them that are needed.

    Args:
        tower: its weights.
        maps: fastest in channels-last order, in which their rows are views.
        masks: (N, 1, H, W) each.
        needed: masks; predictions are wanted where both masks are 1. None: at all active positions.
    """
    layout = RowLayout.of(maps)
    limit = DENSE_SHARE.get(maps[0].device.type, DEFAULT_DENSE_SHARE)
    counts = to_host(torch.stack([torch.count_nonzero(mask) for mask in masks]))
    full = [count > limit * size for count, size in zip(counts, layout.map_sizes)]
    if not any(full):
        return predict_gathered(tower, maps, masks, counts, needed)
    parts: list[ActivePredictions | None] = [
        predict_full_map(tower, x, mask, count) if dense else None
        for x, mask, count, dense in zip(maps, masks, counts, full)
    ]
    rest = [i for i, dense in enumerate(full) if not dense]
    if rest:
        chosen, wanted = [maps[i] for i in rest], None if needed is None else [needed[i] for i in rest]
        numbers = [counts[i] for i in rest]
        gathered = predict_gathered(tower, chosen, [masks[i] for i in rest], numbers, wanted)
        for i, part in zip(rest, _split_by_map(RowLayout.of(chosen), gathered, numbers)):
            parts[i] = part
    return (
        torch.cat([index + start for (index, _), start in zip(parts, layout.map_starts)]),
        {name: torch.cat([values[name] for _, values in parts]) for name in tower.predictors},
    )


def _split_by_map(layout: RowLayout, predictions: ActivePredictions, counts: Sequence[int]) -> list[ActivePredictions]:
    """Predictions of each map, with row numbers that start at 0 in each; ``counts`` are the maps' active positions."""
    index, values = predictions
    starts = layout.map_starts
    bounds = running_sums(counts)
    if len(index) != bounds[-1]:  # only what is needed, and on a CPU
        bounds = torch.searchsorted(index, torch.tensor(starts)).tolist()
    parts = zip(starts, pairwise(bounds))
    return [(index[a:b] - start, {k: v[a:b] for k, v in values.items()}) for start, (a, b) in parts]


def predict_full_map(tower: ContextSparseTower, x: Tensor, mask: Tensor, count: int) -> ActivePredictions:
    """Compute one map (N, C, H, W) densely, in place where possible, and take its active rows, ``count`` of them."""
    context = tower.context_conv(x)
    statistics = tower.layers[0].norm.statistics(context.flatten(2).transpose(1, 2))
    for layer in tower.layers:
        scale, shift = (v[:, :, None, None] for v in layer.norm.affine(statistics))
        y = at_least_float32(layer.conv(x))
        x = y.mul_(scale).add_(shift).mul_(mask).add_(context).relu_().to(context.dtype)
    index = active_rows([mask], count)
    values = {}
    for name, conv in tower.predictors.items():
        values[name] = _rows(conv(x))[index]
    return index, values


def predict_gathered(
    tower: ContextSparseTower,
    maps: Sequence[Tensor],
    masks: Sequence[Tensor],
    counts: Sequence[int],
    needed: Sequence[Tensor] | None,
) -> ActivePredictions:
    """Compute the active rows of all maps together; ``counts`` are the maps' active positions."""
    layout = RowLayout.of(maps)
    rows = _rows_by_layer(masks, sum(counts), needed, len(tower.layers))
    index = rows[0]
    if len(index) == 0:
        none = maps[0].new_empty(0, dtype=compute_dtype(maps[0]))
        return index, {name: none.view(0, conv.out_channels) for name, conv in tower.predictors.items()}
    stencil = Stencil.of(layout, index)
    begin = _begin_on_cpu if index.device.type == "cpu" else _begin_on_gpu
    start = begin(tower, layout, maps, stencil)
    segment = layout.segment_of(index)
    source = start.features
    for number, (layer, layer_rows) in enumerate(zip(tower.layers, rows)):
        pick = _positions(index, layer_rows)
        neighbours, centre = stencil.neighbours[pick], stencil.centre[pick]
        if number > 0:
            source = TableNeighbourhoods(start.state, neighbours)
        finish = _Finish(*layer.norm.affine(start.statistics), segment[pick], start.context[pick])
        free = _free_after_chunks(neighbours, centre) if number > 0 else itertools.repeat(len(centre))
        waiting: deque[tuple[slice, Tensor]] = deque()
        for (part, y), writable in zip(convolved_chunks(source, layer.conv), free):
            waiting.append((part, finish(y, part)))
            while waiting and waiting[0][0].stop <= writable:
                done, values = waiting.popleft()
                start.state.index_copy_(0, centre[done], values)
    neighbours = stencil.neighbours[_positions(index, rows[-1])]
    return rows[-1], {name: gather_conv(start.state, neighbours, conv) for name, conv in tower.predictors.items()}


def _free_after_chunks(neighbours: Tensor, centre: Tensor) -> list[int]:
    """How many of the positions may be overwritten after each chunk, because no later one reads them.

    On a GPU nobody looks: all of them after the last chunk.
    """
    count, step = len(centre), chunk_rows(centre.device)
    if centre.device.type != "cpu":
        return [*[0] * ((count - 1) // step), count]
    lowest = neighbours.amin(1).flip(0).cummin(0).values.flip(0)  # number that this or any later position reads
    return [*torch.searchsorted(centre.contiguous(), lowest[step::step]).tolist(), count]


@dataclass(frozen=True)
class _Finish:
    """What comes after a layer's convolution: normalise, add G, and clip at zero.

    Attributes:
        scale, shift: of CE-GN, by segment (S, C).
        segment: of each row (n,), ascending.
        context: G at each row, (n, C).
    """

    scale: Tensor
    shift: Tensor
    segment: Tensor
    context: Tensor

    def __call__(self, y: Tensor, part: slice) -> Tensor:
        """Finish the convolution's output at some of the rows, which is overwritten."""
        number = self.segment[part]
        if number.device.type == "cpu" and number[0] == number[-1]:
            number = number[0]  # rows of one segment need no table of its values
        y = at_least_float32(y)
        torch.addcmul(self.shift[number], y, self.scale[number], out=y)
        return y.add_(self.context[part]).relu_().to(self.context.dtype)


def _rows_by_layer(
    masks: Sequence[Tensor], count: int, needed: Sequence[Tensor] | None, num_layers: int
) -> list[Tensor]:
    """Row numbers that each layer must compute, and last those of the predictions.

    A prediction reads the last layer at its 3x3 neighbours, these the layer before at theirs, and so on. Finding the
    rows of each layer makes a GPU wait, so there all layers compute all active rows, ``count`` of them.
    """
    if needed is None or masks[0].device.type != "cpu":
        return [active_rows(masks, count)] * (num_layers + 1)
    wanted = [mask * need for mask, need in zip(masks, needed)]
    rows = [active_rows(wanted)]
    for _ in range(num_layers):
        wanted = [mask * F.max_pool2d(w, 3, stride=1, padding=1) for mask, w in zip(masks, wanted)]
        rows.append(active_rows(wanted))
    return rows[::-1]


def _positions(index: Tensor, subset: Tensor) -> Tensor | slice:
    """Where the row numbers ``subset`` stand in ``index``, both ascending; the full slice stands for everywhere."""
    return slice(None) if len(index) == len(subset) else torch.searchsorted(index, subset)


@dataclass(frozen=True)
class _Start:
    """What the layers begin with.

    Attributes:
        features: the neighbourhoods that the first layer reads.
        state: the table (m + 1, C) that the later layers read: ReLU(G), and a row of zeros.
        context: G at the active rows, (n, C).
        statistics: of G, by segment.
    """

    features: Neighbourhoods
    state: Tensor
    context: Tensor
    statistics: GroupStatistics


def _begin_on_cpu(tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil) -> _Start:
    """Make G piece by piece; keep its statistics and the rows that are read later."""
    dtype, rows = compute_dtype(maps[0]), stencil.rows
    conv, norm = tower.context_conv, tower.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    table = maps[0].new_empty((len(rows) + 1, conv.out_channels), dtype=dtype)
    sources = [_rows(x) for x in maps]
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
    features = MapNeighbourhoods(sources, layout, stencil.index, dtype)
    return _Start(features, table.relu_(), context, GroupStatistics(*(torch.cat(x) for x in zip(*statistics))))


def _begin_on_gpu(tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil) -> _Start:
    """Make G map by map, in tables of all rows."""
    dtype = compute_dtype(maps[0])
    conv, norm = tower.context_conv, tower.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    features, table = (maps[0].new_empty((layout.num_rows + 1, conv.in_channels), dtype=dtype) for _ in range(2))
    statistics = []
    for x, (a, b) in zip(maps, pairwise(layout.map_starts)):
        features[a:b] = _rows(x)
        table[a:b] = row_linear(features[a:b], weight, bias)
        statistics.append(norm.statistics(table[a:b].view(x.shape[0], -1, conv.out_channels)))
    features[-1], table[-1] = 0, 0
    context = table.index_select(0, stencil.index)
    source = TableNeighbourhoods(features, stencil.neighbours)
    return _Start(source, table.relu_(), context, GroupStatistics(*(torch.cat(x) for x in zip(*statistics))))


def _pieces(layout: RowLayout, sources: Sequence[Tensor]) -> list[tuple[int, int, Tensor]]:
    """Cut the rows of the maps into pieces of few rows: segment number, row number of the first row, rows (k, C)."""
    pieces, start = [], 0
    images = (image for rows, (_, h, w) in zip(sources, layout.shapes) for image in rows.split(h * w))
    for segment, image in enumerate(images):
        for piece in image.split(CONTEXT_ROWS):
            pieces.append((segment, start, piece))
            start += len(piece)
    return pieces


def _rows(x: Tensor) -> Tensor:
    """Rows (N*H*W, C) of a map (N, C, H, W)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
