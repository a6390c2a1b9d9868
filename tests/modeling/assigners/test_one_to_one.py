"""The assigners of DeFCN: hand-computed cases, SciPy on the whole matrix, and the references' positives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2_ext.modeling.assigners.atss import assign_atss, assign_aux
from d2_ext.modeling.assigners.best_anchor import assign_best_anchor, square_anchors
from d2_ext.modeling.assigners.center_sampling import size_ranges
from d2_ext.modeling.assigners.nearest_center import assign_nearest_center
from d2_ext.modeling.assigners.poto import (
    CandidateQuality,
    assign_argmax,
    assign_one_to_one,
    foreground_loss_quality,
    poto_quality,
)
from d2_ext.modeling.box_codec import encode_ltrb, make_point_grid

import pytest
import torch
from torch import Tensor

from helpers.golden import load
from helpers.point_scenes import in_px, scene_grid

RANGES = size_ranges([64, 128, 256, 512], 5)
NUM_LOCATIONS = 6820
Assign = Callable[[int, Tensor, Tensor], Tensor]


def rows(maps: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)


def check(case: dict[str, Any], key: str, assign: Assign) -> None:
    """Compare the positives of both images with the reference's, in order of image and location."""
    index, classes, deltas = [], [], []
    for number, gt in enumerate(case["gt"]):
        matched = assign(number, gt["boxes"], gt["classes"])
        positive = (matched >= 0).nonzero()[:, 0]
        index.append(torch.stack([torch.full_like(positive, number), positive], dim=1))
        classes.append(gt["classes"][matched[positive]])
        deltas.append(encode_ltrb(scene_grid().points[positive], gt["boxes"][matched[positive]]))
    assert torch.equal(torch.cat(index), case[key]["index"])
    assert torch.equal(torch.cat(classes), case[key]["classes"])
    if "deltas" in case[key] and key != "anchor":  # the anchor rule stores other deltas
        torch.testing.assert_close(torch.cat(deltas), case[key]["deltas"])


@pytest.mark.parametrize("radius", [1.5, 0.0])
@pytest.mark.parametrize("rule", ["poto", "argmax", "loss"])
def test_positives_equal_the_reference(golden: Path, rule: str, radius: float) -> None:
    case = load(golden, "defcn_targets")
    logits, distances = rows(case["logits"]), rows(in_px(case["reg_stride_units"]))

    def assign(number: int, boxes: Tensor, classes: Tensor) -> Tensor:
        inputs = (scene_grid(), boxes, classes, logits[number])
        if rule == "loss":
            options = {"radius": radius, "box_loss_weight": 2.0, "focal_alpha": 0.25, "focal_gamma": 2.0}
            quality = foreground_loss_quality(*inputs, distances[number], **options)
        else:
            quality = poto_quality(*inputs, None, distances[number], alpha=0.8, radius=radius)
        match = assign_argmax if rule == "argmax" else assign_one_to_one
        return match(quality, len(boxes), NUM_LOCATIONS)

    check(case, f"{rule}_radius{radius}", assign)


def test_the_filter_changes_who_is_positive_as_in_the_reference(golden: Path) -> None:
    case = load(golden, "defcn_targets")
    logits, distances, filters = (
        rows(x) for x in (case["logits"], in_px(case["reg_stride_units"]), case["filter_logits"])
    )

    def assign(number: int, boxes: Tensor, classes: Tensor) -> Tensor:
        quality = poto_quality(
            scene_grid(), boxes, classes, logits[number], filters[number], distances[number], alpha=0.8, radius=1.5
        )
        return assign_one_to_one(quality, len(boxes), NUM_LOCATIONS)

    check(case, "3dmf_main", assign)
    check(case, "aux_main", assign)


def test_the_other_rules_equal_the_reference(golden: Path) -> None:
    case, grid = load(golden, "defcn_targets"), scene_grid()
    scores, distances = rows(case["logits"]).sigmoid(), rows(in_px(case["reg_stride_units"]))
    anchors = square_anchors(grid, [32, 64, 128, 256, 512])
    check(case, "center", lambda _, boxes, classes: assign_nearest_center(grid, boxes, RANGES))
    check(case, "anchor", lambda _, boxes, classes: assign_best_anchor(anchors, boxes))
    check(
        case,
        "aux_aux",
        lambda i, boxes, classes: assign_aux(grid, boxes, classes, scores[i], distances[i], alpha=0.8, topk=9),
    )


@pytest.mark.parametrize("radius", [1.5, 0.0])
@pytest.mark.parametrize("seed", range(8))
def test_listed_candidates_give_the_matching_of_the_whole_matrix(seed: int, radius: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    torch.manual_seed(seed)
    grid = make_point_grid([(30, 40), (15, 20), (8, 10)], [8, 16, 32])
    count = len(grid.points)
    centers, sizes = torch.rand(25, 2) * 200, (torch.rand(25, 2) * 4).exp() + 1  # 2..56 px: some contain no point
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)
    classes = torch.randint(3, (25,))
    candidates = poto_quality(
        grid, boxes, classes, torch.randn(count, 3), None, torch.rand(count, 4) * 40, alpha=0.8, radius=radius
    )
    whole = torch.full((25, count), -1.0)
    whole[candidates.box, candidates.location] = candidates.quality
    assert (whole.amax(dim=1) < 0).any(), "the case should hold a box without candidates"
    row, column = optimize.linear_sum_assignment(whole.numpy(), maximize=True)
    expected = torch.full((count,), -1)
    expected[torch.from_numpy(column)] = torch.from_numpy(row)
    assert torch.equal(assign_one_to_one(candidates, 25, count), expected)


def quality(*rows_: tuple[int, int, float]) -> CandidateQuality:
    box, location, values = zip(*rows_, strict=True)
    return CandidateQuality(torch.tensor(box), torch.tensor(location), torch.tensor(values), -1.0)


def test_the_matching_gives_a_second_choice_and_argmax_does_not() -> None:
    candidates = quality((0, 3, 0.9), (0, 4, 0.5), (1, 3, 0.8), (1, 5, 0.1))
    # Matching: 0.5 + 0.8 = 1.3 against 0.9 + 0.1 = 1.0.
    assert assign_one_to_one(candidates, 2, 8).tolist() == [-1, -1, -1, 1, 0, -1, -1, -1]
    assert assign_argmax(candidates, 2, 8).tolist() == [-1, -1, -1, 0, -1, -1, -1, -1]


def test_a_quality_of_zero_beats_having_no_candidate() -> None:
    candidates = quality((0, 6, 0.0))
    assert assign_one_to_one(candidates, 1, 8).tolist() == [-1] * 6 + [0, -1]
    assert assign_argmax(candidates, 1, 8).tolist() == [-1] * 6 + [0, -1]


def test_a_box_without_candidates_is_matched_with_the_first_location_but_dropped_by_argmax() -> None:
    candidates = quality((1, 6, 0.7))
    assert assign_one_to_one(candidates, 2, 8).tolist() == [0, -1, -1, -1, -1, -1, 1, -1]
    assert assign_argmax(candidates, 2, 8).tolist() == [-1] * 6 + [1, -1]


def test_quality_weighs_overlap_by_alpha() -> None:
    # One point at (4, 4), box 0..8, predicted 0..4 x 0..8: IoU 1/2. Score sigmoid(0) = 1/2, filter 1/2.
    grid = make_point_grid([(1, 1)], [8])
    arguments = (grid, torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0]), torch.zeros(1, 1))
    distances = torch.tensor([[4.0, 4.0, 0.0, 4.0]])
    plain = poto_quality(*arguments, None, distances, alpha=0.8, radius=1.5)
    filtered = poto_quality(*arguments, torch.zeros(1, 1), distances, alpha=0.8, radius=1.5)
    assert plain.quality.item() == pytest.approx(0.5)  # 0.5^0.2 * 0.5^0.8
    assert filtered.quality.item() == pytest.approx(0.25**0.2 * 0.5**0.8)


def test_diverged_predictions_lose_instead_of_crashing() -> None:
    grid = make_point_grid([(2, 2)], [8])
    logits = torch.tensor([[float("nan")], [0.0], [0.0], [0.0]])
    found = poto_quality(
        grid, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([0]), logits, None, torch.full((4, 4), 4.0),
        alpha=0.8, radius=0.0,
    )  # fmt: skip
    assert found.quality.isfinite().all()
    assert assign_one_to_one(found, 1, 4)[0] == -1


def test_every_rule_takes_images_without_boxes() -> None:
    grid, none = scene_grid(), torch.zeros(0, 4)
    classes, logits = torch.zeros(0, dtype=torch.long), torch.zeros(NUM_LOCATIONS, 2)
    distances = torch.ones(NUM_LOCATIONS, 4)
    found = poto_quality(grid, none, classes, logits, None, distances, alpha=0.8, radius=1.5)
    for matched in (
        assign_one_to_one(found, 0, NUM_LOCATIONS),
        assign_argmax(found, 0, NUM_LOCATIONS),
        assign_nearest_center(grid, none, RANGES),
        assign_best_anchor(square_anchors(grid, [32, 64, 128, 256, 512]), none),
        assign_aux(grid, none, classes, logits.sigmoid(), distances, alpha=0.8, topk=9),
        assign_atss(grid.cells, grid.counts, none),
    ):
        assert matched.shape == (NUM_LOCATIONS,)
        assert (matched == -1).all()


def test_more_boxes_than_locations_leave_some_boxes_out() -> None:
    candidates = quality((0, 0, 0.3), (1, 0, 0.9), (2, 1, 0.5))
    assert assign_one_to_one(candidates, 3, 2).tolist() == [1, 2]


def test_small_levels_give_the_auxiliary_rule_all_they_have() -> None:
    grid = make_point_grid([(2, 2), (1, 1)], [8, 16])  # fewer than 9 locations each
    distances = torch.full((5, 4), 8.0)
    matched = assign_aux(
        grid, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([0]), torch.full((5, 1), 0.5), distances,
        alpha=0.8, topk=9,
    )  # fmt: skip
    # The coarse location predicts the box exactly (quality 0.5^0.2), the fine ones overlap it less.
    assert matched.tolist() == [-1, -1, -1, -1, 0]


def test_atss_takes_what_is_above_mean_plus_deviation() -> None:
    grid = make_point_grid([(8, 8), (4, 4)], [8, 16])
    # Anchors of 16 and 32 px. The box is exactly the fine level's anchor around (28, 28).
    anchors = square_anchors(grid, [16.0, 32.0])
    matched = assign_atss(anchors, grid.counts, torch.tensor([[20.0, 20.0, 36.0, 36.0]]), topk=4, min_distance=0.0)
    assert (matched >= 0).nonzero()[:, 0].tolist() == [3 * 8 + 3]
