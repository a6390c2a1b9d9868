"""FCOS assignment: hand-computed cases, and the labels of the reference codes."""

from __future__ import annotations

from pathlib import Path

from d2_ext.errors import ConfigError
from d2_ext.modeling.assigners.candidates import candidate_pairs, sampling_regions
from d2_ext.modeling.assigners.center_sampling import assign_by_size, size_ranges
from d2_ext.modeling.box_codec import centerness, decode_ltrb, encode_ltrb, make_point_grid

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.golden import load
from helpers.point_scenes import SCENE_CLASSES, per_level, scene_grid

RANGES = size_ranges([64, 128, 256, 512], 5)
EMPTY = torch.zeros(0, 4)


def labels_of(matched: Tensor, classes: Tensor) -> Tensor:
    return torch.cat([classes, torch.tensor([SCENE_CLASSES])])[matched]


def test_points_are_cell_centres_row_by_row() -> None:
    grid = make_point_grid([(1, 2), (1, 1)], [8, 16])
    assert grid.points.tolist() == [[4, 4], [12, 4], [8, 8]]
    assert grid.point_strides.tolist() == [8, 8, 16]
    assert grid.cells.tolist() == [[0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 16, 16]]


def test_decoding_undoes_encoding() -> None:
    points, boxes = torch.rand(7, 2) * 50, torch.rand(7, 4) * 50
    torch.testing.assert_close(decode_ltrb(points, encode_ltrb(points, boxes)), boxes)


def test_centerness_is_the_root_of_both_ratios() -> None:
    # left 2, top 3, right 8, bottom 12: sqrt(2/8 * 3/12) = 1/4
    assert centerness(torch.tensor([2.0, 3.0, 8.0, 12.0])).item() == pytest.approx(0.25)


def test_a_box_of_one_cell_has_its_one_centre_as_positive() -> None:
    grid = make_point_grid([(4, 4)], [8])
    matched = assign_by_size(grid, torch.tensor([[8.0, 16.0, 16.0, 24.0]]), [(-1.0, 1e8)])
    assert matched.view(4, 4).tolist() == [[-1] * 4, [-1] * 4, [-1, 0, -1, -1], [-1] * 4]


def test_the_region_is_clipped_to_the_box() -> None:
    # center (20, 6), reach 1.5 * 8 = 12 px: 8..32 in x, but only 4..8 in y
    regions = sampling_regions(torch.tensor([[0.0, 4.0, 40.0, 8.0]]), torch.tensor([8.0]), 1.5)
    assert regions[0, 0].tolist() == [8, 4, 32, 8]


def test_points_on_the_border_of_a_box_are_outside() -> None:
    grid = make_point_grid([(3, 3)], [8])
    # The border runs through the points 4 and 20 in both directions.
    box, location = candidate_pairs(grid, torch.tensor([[4.0, 4.0, 20.0, 20.0]]), radius=0)
    assert box.tolist() == [0]
    assert location.tolist() == [4]


def test_a_distance_on_a_bound_belongs_to_both_levels_only_if_ranges_are_closed() -> None:
    # One point at (64, 64) on each level; l = t = r = b = 64.
    grid = make_point_grid([(1, 1), (1, 1)], [128, 128])
    box = torch.tensor([[0.0, 0.0, 128.0, 128.0]])
    ranges = size_ranges([64], 2)
    assert assign_by_size(grid, box, ranges, closed=True).tolist() == [0, 0]
    assert assign_by_size(grid, box, ranges, closed=False).tolist() == [-1, -1]


def test_the_smaller_of_overlapping_boxes_wins_then_the_lower_index() -> None:
    grid = make_point_grid([(2, 2)], [8])
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 16.0, 12.0], [0.0, 0.0, 12.0, 16.0]])
    matched = assign_by_size(grid, boxes, [(-1.0, 1e8)], radius=0)
    # Points are 4 and 12 in both directions; 12 lies on the border of boxes 1 (in y) and 2 (in x).
    # Upper left: 1 and 2, of equal area; upper right: 0 and 1; lower left: 0 and 2; lower right: 0.
    assert matched.tolist() == [1, 1, 2, 0]


def test_no_boxes_give_background_everywhere() -> None:
    assert (assign_by_size(scene_grid(), EMPTY, RANGES) == -1).all()


def test_a_box_without_a_point_stays_unassigned() -> None:
    assert (assign_by_size(scene_grid(), torch.tensor([[5.0, 5.0, 7.0, 7.0]]), RANGES) == -1).all()


@settings(max_examples=40, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[st.floats(0, 110)] * 2, *[st.floats(0.5, 90)] * 2), max_size=6),
    radius=st.sampled_from([0.0, 0.4, 1.5, 3.0]),
)
def test_the_listed_pairs_are_those_of_the_dense_mask(boxes: list[tuple[float, ...]], radius: float) -> None:
    grid = make_point_grid([(12, 15), (6, 8), (3, 4)], [8, 16, 32])
    xywh = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    boxes_xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
    regions = sampling_regions(boxes_xyxy, torch.tensor(grid.strides, dtype=torch.float32), radius)
    per_point = regions[:, grid.point_levels]  # (M, R, 4)
    mask = (encode_ltrb(grid.points[None].expand(len(xywh), -1, -1), per_point) > 0).all(dim=-1)
    box, location = candidate_pairs(grid, boxes_xyxy, radius)
    assert torch.equal(torch.stack([box, location], dim=1), mask.nonzero())


@pytest.mark.parametrize(
    ("key", "radius", "inclusive"),
    [("tianzhi_plain", 0.0, True), ("tianzhi_radius1.5_norm", 1.5, True)],
)
def test_labels_and_targets_equal_the_original(golden: Path, key: str, radius: float, inclusive: bool) -> None:
    case, grid = load(golden, "fcos_targets"), scene_grid()
    matched = [
        assign_by_size(grid, gt["boxes"], RANGES, radius=radius, inclusive_pixels=inclusive) for gt in case["gt"]
    ]
    labels = torch.stack([labels_of(m, gt["classes"]) for m, gt in zip(matched, case["gt"], strict=True)])
    for ours, theirs in zip(per_level(labels), case[key]["labels_level_first"], strict=True):
        assert torch.equal((ours + 1) % (SCENE_CLASSES + 1), theirs.long())  # theirs count the background as 0


@pytest.mark.parametrize(("key", "radius"), [("adelaidet_center", 1.5), ("adelaidet_no_center", 0.0)])
def test_labels_and_targets_equal_adelaidet(golden: Path, key: str, radius: float) -> None:
    case, grid = load(golden, "fcos_targets"), scene_grid()
    truth = [*case["gt"], {"boxes": EMPTY, "classes": torch.zeros(0, dtype=torch.long)}]
    matched = [assign_by_size(grid, gt["boxes"], RANGES, radius=radius) for gt in truth]
    labels = per_level(torch.stack([labels_of(m, gt["classes"]) for m, gt in zip(matched, truth, strict=True)]))
    boxes = torch.stack([torch.cat([gt["boxes"], torch.zeros(1, 4)])[m] for m, gt in zip(matched, truth, strict=True)])
    distances = encode_ltrb(grid.points.expand(3, -1, -1), boxes) / grid.point_strides[:, None]
    start = 0
    for count, ours, label, target in zip(grid.counts, labels, case[key]["labels"], case[key]["reg_targets"]):
        assert torch.equal(ours, label.long())
        positive = ours < SCENE_CLASSES
        level = distances[:, start : start + count].reshape(-1, 4)
        torch.testing.assert_close(level[positive], target[positive])
        start += count


def test_open_ranges_give_detectron2s_labels_but_for_its_rounded_areas(golden: Path) -> None:
    case, grid = load(golden, "fcos_targets"), scene_grid()
    different = []
    for index, gt in enumerate(case["gt"]):
        matched = assign_by_size(grid, gt["boxes"], RANGES, closed=False)
        theirs = case["detectron2"]["labels_per_image"][index]
        places = grid.points[(labels_of(matched, gt["classes"]) != theirs).nonzero()[:, 0]]
        different += [(index, *point) for point in places.tolist()]
    # There the areas are 6402 and 6400: equal for a float32 near 1e8, whose steps are 8.
    assert different == [(1, 236, 236), (1, 244, 236), (1, 236, 244), (1, 244, 244)]


def test_ranges_must_fit_the_levels() -> None:
    with pytest.raises(ConfigError, match="does not fit 5 pyramid levels: it must hold 4 ascending numbers"):
        size_ranges([64, 128], 5)
    with pytest.raises(ConfigError, match="ascending"):
        size_ranges([128, 64], 3)
