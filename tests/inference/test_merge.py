"""Merging the detections of two tiles of 100 x 100 px that share the columns 80 to 100."""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.inference.merge import merge_tiles, touches_cut
from d2_ext.inference.tiles import make_tiles

import torch
from detectron2.structures import Boxes, Instances

LEFT, RIGHT = TILES = make_tiles(100, 180, 100, 0.2)
Detection = tuple[Sequence[float], float, int]


def _instances(rows: Sequence[Detection], size: tuple[int, int] = (100, 100)) -> Instances:
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores, classes = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows], dtype=torch.long)
    return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def _merge(left: Sequence[Detection], right: Sequence[Detection]) -> list[tuple[list[float], float, int]]:
    """Boxes of the right tile are given in its own frame; it starts at column 80."""
    merged = merge_tiles(TILES, [_instances(left), _instances(right)], (100, 180), iou=0.5)
    assert merged.image_size == (100, 180)
    columns = merged.pred_boxes.tensor.tolist(), merged.scores.tolist(), merged.pred_classes.tolist()
    return [(box, round(score, 3), cls) for box, score, cls in zip(*columns)]


def test_boxes_move_into_the_image_best_first() -> None:
    found = _merge([([10, 10, 20, 20], 0.5, 0)], [([50, 10, 60, 20], 0.75, 1)])
    assert found == [([130, 10, 140, 20], 0.75, 1), ([10, 10, 20, 20], 0.5, 0)]


def test_an_object_seen_whole_by_both_tiles_is_found_once_with_the_better_score() -> None:
    found = _merge([([85, 10, 95, 20], 0.5, 0)], [([5, 10, 15, 21], 0.75, 0)])
    assert found == [([85, 10, 95, 21], 0.75, 0)]


def test_objects_of_different_classes_stay() -> None:
    assert len(_merge([([85, 10, 95, 20], 0.5, 0)], [([5, 10, 15, 20], 0.75, 1)])) == 2


def test_a_part_at_a_cut_gives_way_to_the_whole_even_with_a_better_score() -> None:
    # The object lies in columns 70 to 95: whole on the left, from column 80 = 0 on the right.
    found = _merge([([70, 10, 95, 20], 0.5, 0)], [([0, 10, 15, 20], 0.9, 0)])
    assert found == [([70, 10, 95, 20], 0.5, 0)]


def test_parts_of_an_object_larger_than_the_shared_zone_are_joined() -> None:
    found = _merge([([30, 10, 100, 50], 0.5, 0)], [([0, 11, 60, 52], 0.75, 0)])
    assert found == [([30, 10, 140, 52], 0.75, 0)]


def test_an_object_across_three_tiles_becomes_one() -> None:
    tiles = make_tiles(100, 260, 100, 0.2)
    parts = [([50, 0, 100, 50], 0.5, 0)], [([0, 0, 100, 50], 0.6, 0)], [([0, 0, 40, 50], 0.7, 0)]
    merged = merge_tiles(tiles, [_instances(part) for part in parts], (100, 260), iou=0.5)
    assert merged.pred_boxes.tensor.tolist() == [[50, 0, 200, 50]]
    assert merged.scores.tolist() == torch.tensor([0.7]).tolist()


def test_close_objects_that_a_detector_without_nms_tells_apart_stay_apart() -> None:
    # IoU of the two is 8 / 12; NMS over all would leave one. Each tile sees both: two objects, not one, not four.
    pair = [([84, 10, 94, 20], 0.9, 0), ([86, 10, 96, 20], 0.8, 0)]
    seen_right = [([4, 10, 14, 20], 0.85, 0), ([6, 10, 16, 20], 0.7, 0)]
    assert _merge(pair, seen_right) == [([84, 10, 94, 20], 0.9, 0), ([86, 10, 96, 20], 0.8, 0)]


def test_overlapping_boxes_of_one_tile_are_left_alone() -> None:
    assert len(_merge([([10, 10, 30, 30], 0.9, 0), ([11, 10, 31, 30], 0.8, 0)], [])) == 2


def test_a_box_beside_the_shared_zone_is_no_duplicate() -> None:
    assert len(_merge([([60, 10, 79, 20], 0.9, 0)], [([21, 10, 40, 20], 0.8, 0)])) == 2


def test_nothing_found_gives_nothing() -> None:
    assert _merge([], []) == []


def test_only_inner_borders_cut() -> None:
    boxes = torch.tensor([[0.0, 5, 20, 20], [5, 0, 20, 100], [80, 50, 99, 60], [50, 5, 97, 10], [50, 5, 100, 10]])
    assert touches_cut(boxes, LEFT).tolist() == [False, False, True, False, True]
    assert touches_cut(boxes[:, [2, 1, 0, 3]] * 0 + torch.tensor([81.5, 5, 100, 10]), RIGHT).all()
