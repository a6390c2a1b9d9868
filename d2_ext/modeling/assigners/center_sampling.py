"""FCOS assignment: a location learns the smallest box that it lies in, on the level whose range fits.

Paper: FCOS, arXiv:1904.01355, section 3.2; center sampling is from its journal version, arXiv:2006.09214.
Differs: between boxes of equal area the lower index wins, on every device; Detectron2's own FCOS compares
``1e8 - area`` in float32 and so takes areas closer than about 8 px^2 for equal.

Letters: L levels, R locations of all levels, M boxes, Q pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from d2_ext.errors import ConfigError
from d2_ext.modeling.assigners.candidates import candidate_pairs
from d2_ext.modeling.box_codec import PointGrid, encode_ltrb

import torch
from torch import Tensor


def size_ranges(sizes_of_interest: Sequence[float], num_levels: int) -> list[tuple[float, float]]:
    """Ranges of max(l, t, r, b) per level, px, from the bounds between them.

    Raises:
        ConfigError: the number of bounds does not fit the number of levels, or they do not ascend.

    Example:
        >>> size_ranges([64, 128], 3)
        [(-1.0, 64.0), (64.0, 128.0), (128.0, inf)]
    """
    if len(sizes_of_interest) != num_levels - 1 or list(sizes_of_interest) != sorted(set(sizes_of_interest)):
        raise ConfigError(
            f"SIZES_OF_INTEREST {list(sizes_of_interest)} does not fit {num_levels} pyramid levels: it must hold "
            f"{num_levels - 1} ascending numbers, the bounds in px between one level and the next."
        )
    bounds = [-1.0, *(float(size) for size in sizes_of_interest), float("inf")]
    return list(itertools.pairwise(bounds))


def assign_by_size(
    grid: PointGrid,
    boxes: Tensor,
    ranges: Sequence[tuple[float, float]],
    *,
    radius: float = 1.5,
    closed: bool = True,
    inclusive_pixels: bool = False,
) -> Tensor:
    """Find the box that each location learns.

    Args:
        grid: the locations.
        boxes: (M, 4) XYXY, px; M may be 0.
        ranges: per level, which max(l, t, r, b) it answers for, px.
        radius: half side of the square of candidates around a box's center, in strides; 0 = the whole box.
        closed: whether a distance equal to a bound of a range is in it.
        inclusive_pixels: add 1 px to both sides in the areas that are compared.

    Returns:
        (R,) index of the box, -1 where there is none.
    """
    lower, upper = torch.tensor(ranges, device=boxes.device).unbind(dim=1)  # (L,)
    # max(l, t, r, b) of a point inside lies between half the longer side and that side: skip hopeless levels.
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)  # (M, 1)
    level_mask = (longer >= lower) & (longer / 2 <= upper)
    box, location = candidate_pairs(grid, boxes, radius, level_mask)

    reach = encode_ltrb(grid.points[location], boxes[box]).amax(dim=1)  # (Q,)
    level = grid.point_levels[location]
    if closed:
        in_range = (reach >= lower[level]) & (reach <= upper[level])
    else:
        in_range = (reach > lower[level]) & (reach < upper[level])
    sides = boxes[:, 2:] - boxes[:, :2] + float(inclusive_pixels)
    return smallest_box_per_location(box[in_range], location[in_range], sides.prod(dim=1), len(grid.points))


def smallest_box_per_location(box: Tensor, location: Tensor, areas: Tensor, num_locations: int) -> Tensor:
    """Resolve several boxes at one location: the smallest area wins, then the lower index.

    Args:
        box: (Q,) indices of boxes.
        location: (Q,) indices of locations.
        areas: (M,) of the boxes.
        num_locations: R.

    Returns:
        (R,) index of the box, -1 where there is none.
    """
    order = areas.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    best = torch.full((num_locations,), len(areas), device=areas.device, dtype=torch.long)
    best.scatter_reduce_(0, location, rank[box], reduce="amin")
    return torch.cat([order, order.new_tensor([-1])])[best]
