"""The choice of candidates on one level, by hand."""

from __future__ import annotations

from d2_ext.errors import ConfigError
from d2_ext.modeling.selection import SelectionRule, select_candidates

import pytest
import torch
from torch import Tensor


def rule(**changes: object) -> SelectionRule:
    values = {"topk": 10, "nms_thresh": None, "max_detections": 10, "rank_with_quality": True}
    return SelectionRule(**{**values, **changes})


def chosen(logits: Tensor, quality: Tensor | None, num_boxes: int = 100, **changes: object) -> tuple[Tensor, ...]:
    return select_candidates(logits, quality, rule(**changes), num_boxes)


def test_the_threshold_is_on_the_class_probability_or_on_the_product() -> None:
    logits, quality = torch.tensor([[0.0], [2.0]]), torch.tensor([[-3.0], [3.0]])
    box, classes, scores = chosen(logits, quality, score_thresh=0.4)
    assert box.tolist() == [0, 1]
    assert classes.tolist() == [0, 0]
    torch.testing.assert_close(scores, (logits.sigmoid() * quality.sigmoid())[:, 0])
    assert chosen(logits, quality, score_thresh=0.4, thresh_with_quality=True)[0].tolist() == [1]
    root = chosen(logits, quality, score_thresh=0.4, root=True)[2]
    torch.testing.assert_close(root, scores.sqrt())


def test_the_ranking_can_leave_the_quality_out() -> None:
    logits, quality = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [-3.0]])
    assert chosen(logits, quality, score_thresh=0.0, topk=1)[0].item() == 0
    assert chosen(logits, quality, score_thresh=0.0, topk=1, rank_with_quality=False)[0].item() == 1


def test_scores_equal_to_the_threshold_are_dropped_exactly() -> None:
    logits = torch.logit(torch.tensor([[0.05], [0.0501], [0.0499]], dtype=torch.float64)).float()
    prob = logits.sigmoid()
    assert chosen(logits, None, score_thresh=prob[0].item())[0].tolist() == [1]
    assert chosen(torch.tensor([[100.0], [0.0]]), None, score_thresh=1.0)[0].tolist() == []


# Box 0 has the two best classes, boxes 1 and 2 one each; the threshold drops box 3.
SCORES = torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.6, 0.2], [0.2, 0.1]])


@pytest.mark.parametrize(
    ("unit", "topk", "expected"),
    [
        ("pair", 2, {(0, 0), (0, 1)}),
        ("anchor", 2, {(0, 0), (0, 1), (1, 0)}),
        ("location", 2, {(0, 0), (0, 1)}),
        ("location", 100, {(0, 0), (0, 1), (1, 0)}),  # the level has three boxes: not more than three pairs
        ("pair", 100, {(0, 0), (0, 1), (1, 0), (2, 0)}),
    ],
)
def test_pairs_anchors_and_locations_are_counted_as_named(unit: str, topk: int, expected: set[tuple[int, int]]) -> None:
    box, classes, scores = chosen(SCORES.logit(), None, num_boxes=3, score_thresh=0.3, unit=unit, topk=topk)
    assert set(zip(box.tolist(), classes.tolist())) == expected
    torch.testing.assert_close(scores, SCORES[box, classes])


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'anchor'"):
        rule(score_thresh=0.0, unit="anchors")
