"""One-to-few assignment by distance: on each level, the location nearest to a box's center.

The "center" rule in the comparison of DeFCN (arXiv:2012.03544, Table 1), as its code has it: a location needs not lie
inside the box, and a box is kept on every level whose range fits.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.modeling.assigners.center_sampling import smallest_box_per_location
from d2_ext.modeling.box_codec import PointGrid, encode_ltrb

import torch
from torch import Tensor


@torch.no_grad()
def assign_nearest_center(grid: PointGrid, boxes: Tensor, ranges: Sequence[tuple[float, float]]) -> Tensor:
    """Find the box that each location learns.

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px; M may be 0.
        ranges: per level, which max(l, t, r, b) it answers for, px, bounds included.

    Returns:
        (R,) index of the box, -1 where there is none; where boxes collide the smaller one is kept.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    indices = torch.arange(len(boxes), device=boxes.device)
    start, pairs = 0, []
    for count, (lower, upper) in zip(grid.counts, ranges, strict=True):
        points = grid.points[start : start + count]
        nearest = torch.cdist(centers, points).argmin(dim=1) + start  # (M,)
        reach = encode_ltrb(grid.points[nearest], boxes).amax(dim=1)
        keep = (reach >= lower) & (reach <= upper)
        pairs.append((indices[keep], nearest[keep]))
        start += count
    box, location = (torch.cat(column) for column in zip(*pairs, strict=True))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return smallest_box_per_location(box, location, areas, len(grid.points))
