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

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from d2_ext.layers.context_norm import at_least_float32
from d2_ext.layers.levels import RowLayout, running_sums, to_host
from d2_ext.layers.neighbourhoods import Stencil
from d2_ext.layers.row_linear import compute_dtype
from d2_ext.layers.sparse_conv import active_rows, gather_conv
from d2_ext.layers.sparse_layers import positions_in, rows_of, run_layers

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from d2_ext.layers.sparse_tower import ContextSparseTower

# A map with a larger active share than this is computed densely; see the measurements in results/.
DENSE_SHARE = {"cpu": 0.9}
DEFAULT_DENSE_SHARE = 0.5

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
    bounds: Sequence[int] = running_sums(counts)
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
        values[name] = rows_of(conv(x))[index]
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
    state = run_layers(tower, layout, maps, stencil, rows)
    neighbours = stencil.neighbours[positions_in(index, rows[-1])]
    return rows[-1], {name: gather_conv(state, neighbours, conv) for name, conv in tower.predictors.items()}


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
