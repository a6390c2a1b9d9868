"""Sparse towers in a graph: rows of active positions, gathered, multiplied and scattered back.

The definition is in ``layers/sparse/tower.py``, the same idea for torch in ``layers/sparse/inference.py``; here every
step is one that ONNX has, and that its runtimes do well: no map is copied whole, but for its rows in another order of
memory, which both towers of a head share, as they share the moments (a runtime computes equal steps once).
Letters: N images, C channels, L levels, R positions of all maps, n active ones, m inactive ones beside them (the ring).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from d2_ext.layers.sparse.context_norm import ContextGroupNorm, GroupStatistics
from d2_ext.layers.sparse.linear import tap_major
from d2_ext.layers.sparse.position_norm import PositionNorm, normalize_channels
from d2_ext.layers.sparse.tower import ContextSparseTower

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVE, RING = 2, 1
# Behind the positions of each level stand two that are always active and two that are always of the ring, so that no
# tensor is empty: OpenVINO repeated its last results where one was. They read some row, and nobody reads theirs.
EXTRA = (ACTIVE, ACTIVE, RING, RING)


@dataclass(frozen=True)
class _Active:
    """Active positions of L maps, and the table of rows that their 3x3 neighborhoods need.

    The table holds the n active positions, then the m of their ring, then a row of zeros for what lies outside a map.

    Attributes:
        rows: of each level, the active rows of its maps.
        ring: of each level, the rows of its ring.
        places: (n,) where the results of the active positions go in a table of all levels.
        neighbors: (n * 9,) rows of the table, in the order of a kernel's taps.
        segment: (n,) which image of which level, level after level.
    """

    rows: list[Tensor]
    ring: list[Tensor]
    places: Tensor
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
    images = [x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps]
    outside = maps[0].new_zeros(1, maps[0].shape[1])
    at_active, at_ring = (
        torch.cat([x.flatten(0, 1).index_select(0, row) for x, row in zip(images, rows)])
        for rows in (active.rows, active.ring)
    )
    conv = tower.context_conv
    normalize = _normalization(tower, images, active.segment)
    context, ring = (F.linear(x, conv.weight.flatten(1), conv.bias) for x in (at_active, at_ring))
    ring = ring.relu()
    table = torch.cat([at_active, at_ring, outside])
    for layer in tower.layers:
        y = (normalize(layer.norm, _convolve(table, active, [layer.conv])) + context).relu()
        table = torch.cat([y, ring, outside])
    predictors = list(tower.predictors.values())
    values = _convolve(table, active, predictors).split([conv.out_channels for conv in predictors], dim=1)
    return {name: _maps(v, active, tower.bases[name], maps) for name, v in zip(tower.predictors, values)}


def _find(masks: Sequence[Tensor]) -> _Active:
    """Positions that L masks (N, 1, Hl, Wl) select, and where they and their neighbors lie."""
    # Maps with a border of one cell, in which neighbors lie at fixed distances; of each cell what it is, the distance
    # to the cell below, and its segment.
    kinds, below, segments = [], [], []
    centers, rows, ring, places = [], [], [], []
    extra = torch.arange(len(EXTRA), device=masks[0].device)
    cell, start = 0, 0
    for level, mask in enumerate(masks):
        number, _, height, width = mask.shape
        size = number * height * width
        marks = F.pad(mask.float() + F.max_pool2d(mask.float(), 3, stride=1, padding=1), (1, 1, 1, 1)).long()
        kind = torch.cat([marks.flatten(), torch.tensor(EXTRA, device=mask.device)])
        row = F.pad(torch.arange(size, device=mask.device).view_as(mask), (1, 1, 1, 1))
        row = torch.cat([row.flatten(), size + extra])
        segment = torch.arange(number, device=mask.device) + level * number
        kinds.append(kind)
        below.append(torch.cat([(torch.zeros_like(marks) + (width + 2)).flatten(), torch.zeros_like(extra)]))
        segments.append(torch.cat([(torch.zeros_like(marks) + segment[:, None, None, None]).flatten(), 0 * extra]))
        center, beside = ((kind == which).nonzero()[:, 0] for which in (ACTIVE, RING))
        active = row.index_select(0, center)
        centers.append(center + cell)
        rows.append(active.clamp(max=size - 1))
        ring.append(row.index_select(0, beside).clamp(max=size - 1))
        places.append(active + start)
        cell, start = cell + kind.shape[0], start + size + len(EXTRA)
    kind, center = torch.cat(kinds), torch.cat(centers)
    rank, ring_rank = ((kind == which).long().cumsum(0) for which in (ACTIVE, RING))
    place = torch.where(kind == ACTIVE, rank - 1, rank[-1] + torch.where(kind == RING, ring_rank - 1, ring_rank[-1]))
    tap = torch.arange(9, device=center.device)
    step = torch.cat(below).index_select(0, center)
    neighbors = center[:, None] + (tap // 3 - 1) * step[:, None] + (tap % 3 - 1)
    return _Active(
        rows,
        ring,
        torch.cat(places),
        place.index_select(0, neighbors.flatten()),
        torch.cat(segments).index_select(0, center),
    )


def _normalization(tower: ContextSparseTower, images: Sequence[Tensor], segment: Tensor) -> Callable[..., Tensor]:
    """What normalizes a layer's rows (n, C), given its norm.

    Args:
        tower: its weights.
        images: L maps (N, H*W, C).
        segment: (n,) of the rows.
    """
    norm = tower.layers[0].norm
    if isinstance(norm, PositionNorm):
        return lambda norm, rows: normalize_channels(rows, norm.channels)
    statistics = GroupStatistics.join([_statistics(norm, tower.context_conv, x) for x in images])

    def by_statistics(norm: ContextGroupNorm, rows: Tensor) -> Tensor:
        # Joined, because OpenVINO takes a gathered product for a quantized table, and crashes.
        both = torch.cat(norm.scale_and_shift(statistics), dim=1)
        scale, shift = both.index_select(0, segment).chunk(2, dim=1)
        return rows * scale + shift

    return by_statistics


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
    total = sum(sizes) + len(EXTRA) * len(sizes)
    table = values.new_full((total, values.shape[1]), base).index_put((active.places,), values)
    results, start = [], 0
    for x, size in zip(like, sizes):
        rows = table[start : start + size].view(x.shape[0], x.shape[2], x.shape[3], values.shape[1])
        results.append(rows.permute(0, 3, 1, 2))
        start = start + size + len(EXTRA)
    return results
