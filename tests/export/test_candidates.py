"""Selection and suppression on numbers small enough to follow."""

from __future__ import annotations

from d2_ext.export.candidates import LevelOutput, best_detections, clip_boxes, level_candidates
from d2_ext.export.suppression import suppress, suppress_operator
from d2_ext.modeling.box_codec import decode_ltrb
from d2_ext.modeling.selection import SelectionRule

import pytest
import torch
from torchvision.ops import batched_nms


def rule(**changes: object) -> SelectionRule:
    values = {
        "score_thresh": 0.3,
        "topk": 2,
        "unit": "pair",
        "thresh_with_quality": False,
        "rank_with_quality": True,
        "root": False,
        "clip_first": False,
        "nms_thresh": 0.5,
        "max_detections": 10,
    }
    return SelectionRule(**{**values, **changes})


def level(scores: list[list[float]], quality: list[float] | None = None) -> LevelOutput:
    """One image; box i is the square of side 2 around (10 * i, 0)."""
    number = len(scores)
    points = torch.stack([torch.arange(number) * 10.0, torch.zeros(number)], dim=1)
    return LevelOutput(
        torch.tensor([scores]).logit(),
        None if quality is None else torch.tensor([quality]).logit()[..., None],
        torch.ones(1, number, 4),
        points,
        decode_ltrb,
    )


def chosen(boxes: torch.Tensor, scores: torch.Tensor) -> set[tuple[int, int, float]]:
    """Number of the box, class and score of each candidate."""
    found = (scores > 0).nonzero().tolist()
    return {(round(float(boxes[n, p, 0] + 1) / 10), c, round(float(scores[n, p, c]), 4)) for n, p, c in found}


# Box 0 has the two best classes, boxes 1 and 2 one each; the threshold drops box 3.
SCORES = [[0.9, 0.8], [0.7, 0.1], [0.6, 0.2], [0.2, 0.1]]


def test_pairs_anchors_and_locations_are_counted_as_named() -> None:
    assert chosen(*level_candidates(level(SCORES), rule())) == {(0, 0, 0.9), (0, 1, 0.8)}
    anchors = chosen(*level_candidates(level(SCORES), rule(unit="anchor")))
    assert anchors == {(0, 0, 0.9), (0, 1, 0.8), (1, 0, 0.7)}
    many = rule(unit="location", topk=1000)  # four boxes: not more than four pairs
    assert chosen(*level_candidates(level([*SCORES[:3], [0.5, 0.4]]), many)) == {
        (0, 0, 0.9),
        (0, 1, 0.8),
        (1, 0, 0.7),
        (2, 0, 0.6),
    }


def test_the_quality_multiplies_and_may_rank_and_decide() -> None:
    outputs = level([[0.9], [0.8], [0.5]], quality=[0.1, 0.5, 0.7])
    assert chosen(*level_candidates(outputs, rule())) == {(1, 0, 0.4), (2, 0, 0.35)}
    assert chosen(*level_candidates(outputs, rule(rank_with_quality=False))) == {(0, 0, 0.09), (1, 0, 0.4)}
    strict = rule(topk=3, thresh_with_quality=True, root=True)
    assert chosen(*level_candidates(outputs, strict)) == {(1, 0, 0.6325), (2, 0, 0.5916)}  # sqrt(0.4), sqrt(0.35)


def test_the_best_pairs_of_each_image_come_first() -> None:
    boxes = torch.arange(16.0).view(2, 2, 4)
    scores = torch.tensor([[[0.1, 0.0], [0.3, 0.2]], [[0.0, 0.0], [0.0, 0.5]]])
    found, values, classes = best_detections(boxes, scores, 3)
    torch.testing.assert_close(values, torch.tensor([[0.3, 0.2, 0.1], [0.5, 0.0, 0.0]]))
    assert classes[0].tolist() == [0, 1, 0]
    assert classes[1, 0] == 1
    assert found[0, :, 0].tolist() == [4.0, 4.0, 0.0]
    assert found[1, 0, 0] == 12.0


def test_boxes_are_clipped_to_the_image() -> None:
    boxes = torch.tensor([[-5.0, 3.0, 30.0, 12.0]])
    assert clip_boxes(boxes, height=10, width=20).tolist() == [[0.0, 3.0, 20.0, 10.0]]


@pytest.mark.parametrize("function", [suppress, suppress_operator])
def test_suppression_is_that_of_every_image_and_class(function: object) -> None:
    corners = torch.rand(3, 40, 2) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(3, 40, 2) * 30], dim=2)
    scores = torch.rand(3, 4, 40) * (torch.rand(3, 4, 40) > 0.3)
    kept = function(boxes, scores, 0.5, 40)
    for image in range(3):
        classes, rows = (scores[image] > 0).nonzero().unbind(1)
        survivors = batched_nms(boxes[image][rows], scores[image][classes, rows], classes, 0.5)
        expected = torch.zeros(4, 40)
        expected[classes[survivors], rows[survivors]] = scores[image][classes[survivors], rows[survivors]]
        assert torch.equal(kept[image], expected)
        assert 0 < len(survivors) < len(rows)
    assert torch.equal(function(boxes, torch.zeros_like(scores), 0.5, 40), torch.zeros_like(scores))
