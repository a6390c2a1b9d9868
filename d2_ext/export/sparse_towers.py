"""Sparse towers in a graph: rows of active positions, gathered, multiplied and scattered back.

The definition is in ``layers/sparse/tower.py``, the same idea for torch in ``layers/sparse/inference.py``; here every
step is one that ONNX has, and that its runtimes do well: no map is copied whole but for the one transposition that
makes rows of it, which both towers of a head share as they share the moments (a runtime computes equal steps once).
Letters: N images, C channels, L levels, n active positions, m inactive ones beside them (their ring).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2_ext.layers.sparse.context_norm import ContextGroupNorm, GroupStatistics
from d2_ext.layers.sparse.linear import tap_major
from d2_ext.layers.sparse.tower import ContextSparseTower

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class _Active:
    """Active positions of L maps, and the table of rows that their 3x3 neighborhoods need.

    The table holds the n active positions, then the m of their ring, then a row of zeros for what lies outside a map.

    Attributes:
        index: (n_l,) rows in the map (N * H * W) of each level.
        ring: (m_l,) of each level.
        neighbors: (n * 9,) rows of the table, in the order of a kernel's taps.
        segment: (n,) which image of which level, level after level.
    """

    index: list[Tensor]
    ring: list[Tensor]
    neighbors: Tensor
    segment: Tensor


def gathered_maps(
    tower: ContextSparseTower, maps: Sequence[Tensor], masks: Sequence[Tensor]
) -> dict[str, list[Tensor]]:
    """Predictions of a sparse tower, computed at the active positions only: by name L maps (N, C', Hl, Wl).

    Args:
        tower: its weights.
        maps: (N, C, Hl, Wl) each.
        masks: bool (N, 1, Hl, Wl) each.
    """
    active = _find(masks)
    rows = [x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps]
    at_active, at_ring = (
        torch.cat([x.flatten(0, 1).index_select(0, i) for x, i in zip(rows, index)])
        for index in (active.index, active.ring)
    )
    outside = maps[0].new_zeros(1, maps[0].shape[1])
    conv, norm = tower.context_conv, tower.layers[0].norm
    statistics = GroupStatistics.join([_statistics(norm, conv, x) for x in rows])
    context, ring = (F.linear(x, conv.weight.flatten(1), conv.bias) for x in (at_active, at_ring))
    ring = ring.relu()
    table = torch.cat([at_active, at_ring, outside])
    for layer in tower.layers:
        scale, shift = (v.index_select(0, active.segment) for v in layer.norm.affine(statistics))
        y = (_convolve(table, active, [layer.conv]) * scale + shift + context).relu()
        table = torch.cat([y, ring, outside])
    predictors = list(tower.predictors.values())
    values = _convolve(table, active, predictors).split([conv.out_channels for conv in predictors], dim=1)
    return {name: _maps(v, active, tower.bases[name], maps) for name, v in zip(tower.predictors, values)}


def _find(masks: Sequence[Tensor]) -> _Active:
    """Positions that L masks (N, 1, Hl, Wl) select, and where they and their neighbors lie."""
    index, ring, center, width, segment = [], [], [], [], []
    near, start = [], 0
    for level, mask in enumerate(masks):
        images, _, rows, columns = mask.shape
        # Whether active (2), beside an active one (1), or neither.
        kind = mask.float() + F.max_pool2d(mask.float(), 3, stride=1, padding=1)
        chosen = mask.flatten().nonzero()[:, 0]
        index.append(chosen)
        ring.append((kind == 1).flatten().nonzero()[:, 0])
        # Neighbors lie at fixed distances in maps with a border of one cell.
        near.append(F.pad(kind, (1, 1, 1, 1)).flatten())
        row = chosen // columns
        image = row // rows
        center.append((row + 2 * image + 1) * (columns + 2) + chosen - row * columns + 1 + start)
        width.append(torch.zeros_like(chosen) + (columns + 2))
        segment.append(image + level * images)
        start = start + images * (rows + 2) * (columns + 2)
    is_active, is_ring = torch.cat(near) == 2, torch.cat(near) == 1
    rank, ring_rank = is_active.long().cumsum(0), is_ring.long().cumsum(0)
    place = torch.where(is_active, rank - 1, rank[-1] + torch.where(is_ring, ring_rank - 1, ring_rank[-1]))
    tap = torch.arange(9, device=place.device)
    neighbors = torch.cat(center)[:, None] + (tap // 3 - 1) * torch.cat(width)[:, None] + (tap % 3 - 1)
    return _Active(index, ring, place.index_select(0, neighbors.flatten()), torch.cat(segment))


def _statistics(norm: ContextGroupNorm, conv: nn.Conv2d, rows: Tensor) -> GroupStatistics:
    """Statistics of a point-wise convolution from the moments of rows (N, n, C), as ``FeatureMoments`` does it."""
    positions = rows.shape[1]
    mean = (rows.new_full((1, positions), 1.0) @ rows)[:, 0] / positions  # runtimes are slow at `rows.mean(1)`
    centered = rows - mean[:, None]
    scatter = centered.transpose(1, 2) @ centered
    weight = conv.weight.flatten(1)
    means = F.linear(mean, weight, conv.bias).unflatten(1, (norm.num_groups, -1))
    squares = ((weight @ scatter) * weight).sum(2).unflatten(1, (norm.num_groups, -1))
    mean, number = means.mean(2), positions * means.shape[2]
    total = squares.sum(2) + positions * (means - mean[:, :, None]).square().sum(2)
    divisor = torch.sym_max(number - 1, 1) if norm.unbiased else number
    return GroupStatistics(mean, torch.rsqrt(total.clamp_min(0) / divisor + norm.eps))


def _convolve(table: Tensor, active: _Active, convs: Sequence[nn.Conv2d]) -> Tensor:
    """3x3 convolutions at the active positions, side by side: (n, C')."""
    columns = table.index_select(0, active.neighbors).view(-1, 9 * table.shape[1])
    weight, bias = (torch.cat(v) for v in zip(*((tap_major(conv.weight), conv.bias) for conv in convs)))
    return F.linear(columns, weight, bias)


def _maps(values: Tensor, active: _Active, base: float, like: Sequence[Tensor]) -> list[Tensor]:
    """Put values (n, C') into L maps (N, C', Hl, Wl) that hold the base elsewhere."""
    sizes = [x.shape[0] * x.shape[2] * x.shape[3] for x in like]
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    index = torch.cat([index + start for index, start in zip(active.index, starts)])
    table = values.new_full((sum(sizes), values.shape[1]), base).index_put((index,), values)
    results = []
    for x, start, size in zip(like, starts, sizes):
        rows = table[start : start + size].view(x.shape[0], x.shape[2], x.shape[3], values.shape[1])
        results.append(rows.permute(0, 3, 1, 2))
    return results
