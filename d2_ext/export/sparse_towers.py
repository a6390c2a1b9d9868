"""Sparse towers in a graph: rows of active positions, gathered, multiplied and scattered back.

The definition is in ``layers/sparse/tower.py``, the same idea for torch in ``layers/sparse/inference.py``; here every
step is one that ONNX has. All images and levels stand in one table of rows: maps with a border of one cell, so that
the nine neighbors of a position lie at fixed distances. Letters: N images, C channels, L levels, n active positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2_ext.layers.sparse.context_norm import GroupStatistics
from d2_ext.layers.sparse.linear import tap_major
from d2_ext.layers.sparse.tower import ContextSparseTower

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class _Active:
    """Active positions of L maps.

    Attributes:
        index: (n,) rows in the table of all bordered maps.
        neighbors: (n, 9) rows of their 3x3 neighborhoods, in the order of a kernel's taps.
        segment: (n,) which image of which level, level after level.
        starts: first row of each level.
    """

    index: Tensor
    neighbors: Tensor
    segment: Tensor
    starts: list[int]


def gathered_maps(
    tower: ContextSparseTower, maps: Sequence[Tensor], masks: Sequence[Tensor]
) -> dict[str, list[Tensor]]:
    """Predictions of a sparse tower, computed at the active positions only: by name L maps (N, C', Hl, Wl).

    Args:
        tower: its weights.
        maps: (N, C, Hl, Wl) each.
        masks: bool (N, 1, Hl, Wl) each.
    """
    contexts = [tower.context_conv(x) for x in maps]
    norm = tower.layers[0].norm
    statistics = [norm.statistics(g.flatten(2).transpose(1, 2)) for g in contexts]
    joined = GroupStatistics.join(statistics)
    active = _find(maps, masks)
    context = torch.cat([_bordered_rows(g) for g in contexts])
    state, source = context.relu(), torch.cat([_bordered_rows(x) for x in maps])
    own_context = context[active.index]
    for layer in tower.layers:
        scale, shift = (v[active.segment] for v in layer.norm.affine(joined))
        y = _convolve(source, active, layer.conv) * scale + shift
        state = state.index_put((active.index,), (y + own_context).relu())
        source = state
    return {
        name: _maps(_convolve(state, active, conv), active, tower.bases[name], maps)
        for name, conv in tower.predictors.items()
    }


def _bordered_rows(x: Tensor) -> Tensor:
    """Rows (N * (H + 2) * (W + 2), C) of a map (N, C, H, W) with zeros around it."""
    return F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(0, 2)


def _find(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> _Active:
    """Positions that the masks select, and where they and their neighbors lie."""
    index, width, segment, starts, start = [], [], [], [], 0
    for level, (x, mask) in enumerate(zip(maps, masks)):
        rows = (x.shape[2] + 2) * (x.shape[3] + 2)  # of one image
        chosen = _bordered_rows(mask.float())[:, 0].nonzero()[:, 0]
        index.append(chosen + start)
        width.append(torch.zeros_like(chosen) + (x.shape[3] + 2))
        segment.append(chosen // rows + level * x.shape[0])
        starts.append(start)
        start = start + x.shape[0] * rows
    center, step = torch.cat(index)[:, None], torch.cat(width)[:, None]
    tap = torch.arange(9, device=center.device)
    neighbors = center + (tap // 3 - 1) * step + (tap % 3 - 1)
    return _Active(center[:, 0], neighbors, torch.cat(segment), starts)


def _convolve(table: Tensor, active: _Active, conv: nn.Conv2d) -> Tensor:
    """A 3x3 convolution at the active positions: (n, C')."""
    columns = table[active.neighbors.flatten()].view(-1, 9 * table.shape[1])
    return F.linear(columns, tap_major(conv.weight), conv.bias)


def _maps(values: Tensor, active: _Active, base: float, like: Sequence[Tensor]) -> list[Tensor]:
    """Put values (n, C') into L maps (N, C', Hl, Wl) that hold the base elsewhere."""
    sizes = [(x.shape[0], x.shape[2] + 2, x.shape[3] + 2) for x in like]
    table = values.new_full((active.starts[-1] + sizes[-1][0] * sizes[-1][1] * sizes[-1][2], values.shape[1]), base)
    table = table.index_put((active.index,), values)
    results = []
    for start, (number, height, width) in zip(active.starts, sizes):
        rows = table[start : start + number * height * width].view(number, height, width, values.shape[1])
        results.append(rows[:, 1 : height - 1, 1 : width - 1].permute(0, 3, 1, 2))
    return results
