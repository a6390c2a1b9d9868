"""Ignore regions."""

from __future__ import annotations

from d2_ext.modeling.ignore import boxes_in_regions, points_in_regions, split_ignore_regions

import torch
from detectron2.structures import Boxes, Instances


def test_rows_of_class_minus_one_are_split_off() -> None:
    instances = Instances((20, 20))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 3, 3]]))
    instances.gt_classes = torch.tensor([4, -1, 0])
    objects, regions = split_ignore_regions(instances)
    assert objects.gt_classes.tolist() == [4, 0]
    assert regions.tolist() == [[1, 1, 9, 9]]


def test_a_box_is_inside_when_half_of_its_own_area_is() -> None:
    region = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.tensor([[5.0, 0, 15, 10], [5.1, 0, 15.1, 10], [2, 2, 4, 4], [-90, -90, 90, 90], [3, 3, 3, 3]])
    assert boxes_in_regions(boxes, region).tolist() == [True, False, True, False, False]
    assert boxes_in_regions(boxes, torch.zeros(0, 4)).tolist() == [False] * 5


def test_two_regions_do_not_add_up() -> None:
    regions = torch.tensor([[0.0, 0, 4, 10], [6, 0, 10, 10]])
    assert boxes_in_regions(torch.tensor([[0.0, 0, 10, 10]]), regions).tolist() == [False]


def test_points_on_the_border_are_inside() -> None:
    points = torch.tensor([[0.0, 0.0], [10.0, 5.0], [10.1, 5.0]])
    assert points_in_regions(points, torch.tensor([[0.0, 0, 10, 10]])).tolist() == [True, True, False]
