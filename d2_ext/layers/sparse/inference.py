"""Inference of a context-enhanced sparse tower: only the active rows of its layers are computed.

What the tower computes is defined in ``layers/sparse/tower.py``; letters and tables in ``rows.py``. All maps
and images are worked on together, because they share the weights (on a CPU, maps with many active rows alone):

1. The point-wise map G is made piece by piece. A piece gives its share of the statistics, and the rows that will be
   read later, which make up the table; then it is forgotten.
2. Each layer gathers the neighbourhoods of the active rows, multiplies, normalises, adds G, and overwrites these rows
   of the table as soon as no neighbourhood that holds them is still to be gathered. The first layer gathers from the
   feature maps.
3. The prediction layers gather and multiply.

On a GPU the table holds all rows, and the host waits once: for the numbers of active positions.

On a CPU, neighbouring active rows are computed together where that is faster (``layers/sparse/work.py``), up to a map
that is active everywhere. Where this is not to be had (16-bit, few channels, GPU), a map that is active nearly
everywhere is computed densely, by the definition's own steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from d2_ext.layers.sparse.context_norm import at_least_float32
from d2_ext.layers.sparse.conv import active_rows, gather_conv
from d2_ext.layers.sparse.layers import rows_of, run_layers
from d2_ext.layers.sparse.linear import compute_dtype
from d2_ext.layers.sparse.rows import RowLayout, running_sums, to_host
from d2_ext.layers.sparse.work import cost_of_a_tile

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from d2_ext.layers.sparse.tower import ContextSparseTower

# A map with a larger active share than this is computed densely where tiles do not pay; see projects/CEASC/README.md.
DENSE_SHARE = {"cpu": 0.9}
DEFAULT_DENSE_SHARE = 0.5
ALONE_ROWS = 4096  # active positions from which on a map is computed alone

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
    counts = to_host(torch.stack([torch.count_nonzero(mask) for mask in masks]))
    limit = dense_share(maps[0])
    dense = [i for i, count in enumerate(counts) if count > limit * layout.map_sizes[i]]
    parts: dict[int, ActivePredictions] = {i: predict_full_map(tower, maps[i], masks[i], counts[i]) for i in dense}
    for group in _groups([i for i in range(len(maps)) if i not in dense], counts, maps[0].device):
        chosen, numbers = [maps[i] for i in group], [counts[i] for i in group]
        wanted = None if needed is None else [needed[i] for i in group]
        gathered = predict_gathered(tower, chosen, [masks[i] for i in group], numbers, wanted)
        if len(group) == len(maps):
            return gathered
        parts.update(zip(group, _split_by_map(RowLayout.of(chosen), gathered, numbers)))
    ordered = [parts[i] for i in range(len(maps))]
    return (
        torch.cat([index + start for (index, _), start in zip(ordered, layout.map_starts)]),
        {name: torch.cat([values[name] for _, values in ordered]) for name in tower.predictors},
    )


def dense_share(x: Tensor) -> float:
    """A map like x (N, C, H, W) with a larger active share is computed densely."""
    if cost_of_a_tile(x) is not None:
        return 1.0  # then a full map consists of tiles, which are faster
    return DENSE_SHARE.get(x.device.type, DEFAULT_DENSE_SHARE)


def _groups(numbers: Sequence[int], counts: Sequence[int], device: torch.device) -> list[list[int]]:
    """Which of some maps are computed together, largest first.

    All of them, because they share the weights; but on a CPU a map with many active positions is computed alone, where
    that costs no time, so that not all maps need memory at once.
    """
    alone = [i for i in numbers if device.type == "cpu" and counts[i] > ALONE_ROWS]
    rest = [i for i in numbers if i not in alone]
    return [[i] for i in alone] + ([rest] if rest else [])


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
    state, neighbours = run_layers(tower, layout, maps, rows)
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
