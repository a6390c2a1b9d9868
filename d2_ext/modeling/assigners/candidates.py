"""Which locations may answer for which box, listed as pairs instead of a dense (M, R) mask.

A dense mask costs M * R tests although a box has a few dozen candidates; here the window of cells around each region
is computed first and only those cells are tested.

Letters: L levels, R locations of all levels, M boxes, Q pairs.
"""

from __future__ import annotations

from d2_ext.modeling.box_codec import PointGrid, encode_ltrb

import torch
from torch import Tensor


def sampling_regions(boxes: Tensor, strides: Tensor, radius: float) -> Tensor:
    """Part of each box whose points may be positive, on each level.

    Args:
        boxes: (M, 4) XYXY, px.
        strides: (L,) px.
        radius: half side of the square around the center, in strides; 0 = the whole box.

    Returns:
        (M, L, 4) XYXY, px: the square clipped to the box. Points count as inside only off its border.
    """
    regions = boxes[:, None, :].expand(-1, len(strides), -1)
    if radius <= 0:
        return regions
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = (strides * radius)[None, :, None]  # (1, L, 1)
    low = torch.maximum(centers[:, None] - reach, regions[..., :2])
    high = torch.minimum(centers[:, None] + reach, regions[..., 2:])
    return torch.cat([low, high], dim=-1)


def candidate_pairs(
    grid: PointGrid, boxes: Tensor, radius: float, level_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """List all pairs of a box and a location strictly inside the box's sampling region.

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px; M may be 0.
        radius: see :func:`sampling_regions`.
        level_mask: optional (M, L) bool; False excludes a level for a box.

    Returns:
        Two (Q,) tensors, ascending by box, then location: the index of the box, and of the location (0 <= index < R).
    """
    device = boxes.device
    strides = torch.tensor(grid.strides, device=device, dtype=torch.float32)
    heights, widths = torch.tensor(grid.sizes, device=device).unbind(dim=1)
    starts = torch.tensor([0, *grid.counts[:-1]], device=device).cumsum(dim=0)
    regions = sampling_regions(boxes.float(), strides, radius)

    # Windows of cells that hold the region: one cell generous on each side, the exact test comes below.
    cells = (regions - (strides // 2)[None, :, None]) / strides[None, :, None]
    limit = torch.stack([widths, heights], dim=-1)[None]  # (1, L, 2)
    first = torch.minimum(cells[..., :2].floor().clamp(min=0).long(), limit)
    last = torch.minimum(cells[..., 2:].ceil().clamp(min=-1).long() + 1, limit)
    extent = (last - first).clamp(min=0)  # (M, L, 2) columns, rows
    if level_mask is not None:
        extent = extent * level_mask[..., None]
    count = extent.prod(dim=-1).flatten()  # (M * L,)

    window = torch.repeat_interleave(torch.arange(len(count), device=device), count)
    inside = torch.arange(len(window), device=device) - (count.cumsum(dim=0) - count)[window]
    columns = extent[..., 0].flatten()[window]
    x = first[..., 0].flatten()[window] + inside % columns
    y = first[..., 1].flatten()[window] + torch.div(inside, columns, rounding_mode="floor")
    level = window % len(grid.strides)
    location = starts[level] + y * widths[level] + x

    keep = encode_ltrb(grid.points[location], regions.reshape(-1, 4)[window]).amin(dim=1) > 0
    return torch.div(window[keep], len(grid.strides), rounding_mode="floor"), location[keep]
