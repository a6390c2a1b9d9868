"""Anchors to boxes by IoU."""

from __future__ import annotations

import itertools

from d2_ext.errors import ConfigError
from d2_ext.modeling.assigners.max_iou import MaxIoUAssigner

import pytest
import torch
from torchvision.ops import box_iou


def test_thresholds_and_best_anchor_by_hand() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    # IoU 1, 0.5 (inclusive), 0.45 (between), 0.39, 0
    anchors = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.5], [0, 0, 10, 3.9], [50, 50, 60, 60]])
    matched, labels = MaxIoUAssigner()(box, anchors)
    assert labels.tolist() == [1, 1, -1, 0, 0]
    assert matched.tolist() == [0] * 5


def test_a_box_that_no_anchor_fits_takes_its_best_anchors_all_of_them() -> None:
    box = torch.tensor([[4.0, 0.0, 6.0, 10.0]])  # IoU with both halves: 10 / (20 + 50 - 10) = 1/6
    anchors = torch.tensor([[0.0, 0, 5, 10], [5, 0, 10, 10], [20, 0, 25, 10]])
    _, labels = MaxIoUAssigner()(box, anchors)
    assert labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(("rule", "expected"), [("reassign", 1), ("keep", 0)])
def test_a_best_anchor_changes_its_box_only_if_reassigned(rule: str, expected: int) -> None:
    # Box 0 is the anchor itself; box 1 is small and this is its best anchor too.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 2, 2]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    matched, labels = MaxIoUAssigner(low_quality_matches=rule)(boxes, anchors)
    assert labels.tolist() == [1, 0]
    assert matched[0].item() == expected


def test_without_boxes_all_anchors_are_negative() -> None:
    matched, labels = MaxIoUAssigner()(torch.zeros(0, 4), torch.rand(5, 4))
    assert labels.tolist() == [0] * 5
    assert matched.tolist() == [0] * 5


def test_a_box_beyond_all_anchors_takes_none() -> None:
    _, labels = MaxIoUAssigner()(torch.tensor([[90.0, 90, 95, 95]]), torch.tensor([[0.0, 0, 10, 10]]))
    assert labels.tolist() == [0]


def loop_assign(boxes: torch.Tensor, anchors: torch.Tensor) -> tuple[list[int], list[int]]:
    """The rule anchor by anchor, then box by box."""
    iou = box_iou(boxes, anchors).tolist()
    matched, labels = [], []
    for column in zip(*iou):
        best = max(column)
        matched.append(column.index(best) if best > 0 else 0)
        labels.append(1 if best >= 0.5 else 0 if best < 0.4 else -1)
    for number, row in enumerate(iou):
        for anchor, value in enumerate(row):
            if value == max(row) > 0:
                matched[anchor], labels[anchor] = number, 1
    return matched, labels


@pytest.mark.parametrize("num_boxes", [3, 64, 65, 150])  # around and beyond the chunk of 64 boxes
def test_the_chunked_computation_is_the_plain_rule(num_boxes: int) -> None:
    corners = torch.rand(num_boxes, 2) * 40
    boxes = torch.cat([corners, corners + 4 + torch.rand(num_boxes, 2) * 8], 1)
    grid = torch.tensor([[x, y, x + 8.0, y + 8.0] for x, y in itertools.product(range(0, 48, 4), repeat=2)])
    matched, labels = MaxIoUAssigner()(boxes, grid)
    expected_matched, expected_labels = loop_assign(boxes, grid)
    assert labels.tolist() == expected_labels
    assert matched.tolist() == expected_matched
    assert {-1, 0, 1} == set(labels.tolist()) or num_boxes > 3


def test_values_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"0\.6 and 0\.5"):
        MaxIoUAssigner(0.6, 0.5)
    with pytest.raises(ConfigError, match="'both' is not known. Known: keep, reassign"):
        MaxIoUAssigner(low_quality_matches="both")
