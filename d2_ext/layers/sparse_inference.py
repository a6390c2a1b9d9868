"""Inference of a context-enhanced sparse tower: only the active rows of its layers are computed.

What the tower computes is defined in ``layers/sparse_tower.py``; letters and tables in ``layers/levels.py``. All maps
and images are worked on together, because they share the weights:

1. The point-wise map G is made piece by piece. A piece gives its share of the statistics, and the rows that will be
   read later; then it is forgotten.
2. Each layer gathers the neighbourhoods of the active rows, multiplies, normalises, adds G, and overwrites these rows.
3. The prediction layers do the same without the last steps.

A map that is active nearly everywhere is computed densely instead, by the definition's own steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from d2_ext.layers.context_norm import ChannelMoments, GroupStatistics, at_least_float32
from d2_ext.layers.levels import RowLayout
from d2_ext.layers.row_linear import compute_dtype, row_linear, tap_major
from d2_ext.layers.sparse_conv import Stencil, active_rows, convolved_chunks, gather_conv

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from d2_ext.layers.sparse_tower import ContextSparseTower

# A map with a larger active share than this is computed densely; see the measurements in results/.
DENSE_SHARE = {"cpu": 0.9}
DEFAULT_DENSE_SHARE = 0.5
# Rows of G made at a time. On a CPU a piece and its source (1024 * 512 floats = 2 MB each) stay in the cache.
CONTEXT_ROWS = {"cpu": 1024}

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
    shares = torch.stack([mask.float().mean() for mask in masks]).tolist()
    full = [share > limit for share in shares]
    if not any(full):
        return predict_gathered(tower, maps, masks, needed)
    parts: list[ActivePredictions | None] = [
        predict_full_map(tower, x, mask) if dense else None for x, mask, dense in zip(maps, masks, full)
    ]
    rest = [i for i, dense in enumerate(full) if not dense]
    if rest:
        wanted = None if needed is None else [needed[i] for i in rest]
        chosen = [maps[i] for i in rest]
        gathered = predict_gathered(tower, chosen, [masks[i] for i in rest], wanted)
        for i, part in zip(rest, _split_by_map(RowLayout.of(chosen), gathered)):
            parts[i] = part
    starts = _starts(layout.map_sizes)
    return (
        torch.cat([index + start for (index, _), start in zip(parts, starts)]),
        {name: torch.cat([values[name] for _, values in parts]) for name in tower.predictors},
    )


def _split_by_map(layout: RowLayout, predictions: ActivePredictions) -> list[ActivePredictions]:
    """Predictions of each map, with row numbers that start at 0 in each."""
    index, values = predictions
    starts = _starts(layout.map_sizes)
    bounds = torch.searchsorted(index, torch.tensor(starts, device=index.device)).tolist()
    parts = zip(starts, itertools.pairwise(bounds))
    return [(index[a:b] - start, {k: v[a:b] for k, v in values.items()}) for start, (a, b) in parts]


def predict_full_map(tower: ContextSparseTower, x: Tensor, mask: Tensor) -> ActivePredictions:
    """Compute one map (N, C, H, W) densely, in place where possible, and take its active rows."""
    context = tower.context_conv(x)
    statistics = tower.layers[0].norm.statistics(context.flatten(2).transpose(1, 2))
    for layer in tower.layers:
        scale, shift = (v[:, :, None, None] for v in layer.norm.affine(statistics))
        y = at_least_float32(layer.conv(x))
        x = y.mul_(scale).add_(shift).mul_(mask).add_(context).relu_().to(context.dtype)
    index = active_rows([mask])
    values = {}
    for name, conv in tower.predictors.items():
        values[name] = _rows(conv(x))[index]
    return index, values


def predict_gathered(
    tower: ContextSparseTower, maps: Sequence[Tensor], masks: Sequence[Tensor], needed: Sequence[Tensor] | None
) -> ActivePredictions:
    """Compute the active rows of all maps together."""
    layout = RowLayout.of(maps)
    rows = _rows_by_layer(masks, needed, len(tower.layers))
    index = rows[0]
    if len(index) == 0:
        none = maps[0].new_empty(0, dtype=compute_dtype(maps[0]))
        return index, {name: none.view(0, conv.out_channels) for name, conv in tower.predictors.items()}
    stencil = Stencil.of(layout, index)
    start = _begin(tower, layout, maps, stencil)
    segment = layout.segment_of(index)
    for number, (layer, layer_rows) in enumerate(zip(tower.layers, rows)):
        pick = _positions(index, layer_rows)
        affine = layer.norm.affine(start.statistics)
        finish = partial(_finish, *affine, segment[pick], start.context[pick])
        centre, neighbours = stencil.centre[pick], stencil.neighbours[pick]
        if number == 0:  # reads another table than it writes
            for part, y in convolved_chunks(start.features, neighbours, layer.conv):
                start.state.index_copy_(0, centre[part], finish(y, part))
        else:  # nothing may be overwritten before everything is read; the first table is free by now
            out = start.features[: len(centre)]
            for part, y in convolved_chunks(start.state, neighbours, layer.conv):
                out[part] = finish(y, part)
            start.state.index_copy_(0, centre, out)
    neighbours = stencil.neighbours[_positions(index, rows[-1])]
    return rows[-1], {name: gather_conv(start.state, neighbours, conv) for name, conv in tower.predictors.items()}


def _finish(scale: Tensor, shift: Tensor, segment: Tensor, context: Tensor, y: Tensor, part: slice) -> Tensor:
    """Normalise the convolution's output y at some rows (it is overwritten), add G and clip at zero."""
    number = segment[part]
    z = at_least_float32(y).mul_(_of_rows(scale, number)).add_(_of_rows(shift, number)).add_(context[part])
    return z.relu_().to(context.dtype)


def _of_rows(values: Tensor, segment: Tensor) -> Tensor:
    """Values (S, C) of the segment of each row (k,), ascending: (k, C), or (C,) if the rows are all of one segment."""
    if segment.device.type == "cpu" and segment[0] == segment[-1]:
        return values[segment[0]]
    return values[segment]


def _rows_by_layer(masks: Sequence[Tensor], needed: Sequence[Tensor] | None, num_layers: int) -> list[Tensor]:
    """Row numbers that each layer must compute, and last those of the predictions.

    A prediction reads the last layer at its 3x3 neighbours, these the layer before at theirs, and so on. Finding the
    rows of each layer makes a GPU wait, so there all layers compute all active rows.
    """
    if needed is None or masks[0].device.type != "cpu":
        return [active_rows(masks)] * (num_layers + 1)
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
        features: the table (m + 1, C) that the first layer reads: the input, and a row of zeros.
        state: the table that the later layers read: ReLU(G), and a row of zeros.
        context: G at the active rows, (n, C).
        statistics: of G, by segment.
    """

    features: Tensor
    state: Tensor
    context: Tensor
    statistics: GroupStatistics


def _begin(tower: ContextSparseTower, layout: RowLayout, maps: Sequence[Tensor], stencil: Stencil) -> _Start:
    """Make G piece by piece; keep its statistics and the rows that are read later."""
    dtype = compute_dtype(maps[0])
    conv, norm = tower.context_conv, tower.layers[0].norm
    weight, bias = tap_major(conv.weight.to(dtype)), conv.bias.to(dtype)
    rows = stencil.rows
    size = (layout.num_rows if rows is None else len(rows)) + 1
    features, state = (maps[0].new_empty((size, conv.in_channels), dtype=dtype) for _ in range(2))
    features[-1], state[-1] = 0, 0
    context = state.new_empty((len(stencil.index), conv.in_channels))
    moments: list[list[ChannelMoments]] = [[] for _ in layout.segment_sizes]
    pieces = _pieces(layout, maps)
    bounds = torch.tensor([start for _, start, _ in pieces] + [layout.num_rows], device=state.device)
    # Of each piece: where its rows begin and end in the table, and among the active rows.
    table_bounds = (bounds if rows is None else torch.searchsorted(rows, bounds)).tolist()
    active_bounds = torch.searchsorted(stencil.index, bounds).tolist()
    for number, (segment, start, source) in enumerate(pieces):
        source = source.to(dtype)
        g = row_linear(source, weight, bias)
        kept = slice(*table_bounds[number : number + 2])
        local = None if rows is None else rows[kept] - start
        features[kept] = source if local is None else source.index_select(0, local)
        torch.clamp_min(g if local is None else g.index_select(0, local), 0, out=state[kept])
        active = slice(*active_bounds[number : number + 2])
        context[active] = g.index_select(0, stencil.index[active] - start)
        moments[segment].append(ChannelMoments.consume(g))
    statistics = [norm.merged_statistics(parts) for parts in moments]
    return _Start(features, state, context, GroupStatistics(*(torch.cat(x) for x in zip(*statistics))))


def _pieces(layout: RowLayout, maps: Sequence[Tensor]) -> list[tuple[int, int, Tensor]]:
    """Cut the maps into pieces of few rows: segment number, row number of the first row, rows (k, C)."""
    step = CONTEXT_ROWS.get(maps[0].device.type, layout.num_rows)
    pieces, start = [], 0
    sources = (image for x in maps for image in _rows(x).split(x.shape[2] * x.shape[3]))
    for segment, source in enumerate(sources):
        for piece in source.split(step):
            pieces.append((segment, start, piece))
            start += len(piece)
    return pieces


def _rows(x: Tensor) -> Tensor:
    """Rows (N*H*W, C) of a map (N, C, H, W)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _starts(sizes: Sequence[int]) -> list[int]:
    """Running sums, from 0 to the total."""
    return [0, *itertools.accumulate(sizes)]
