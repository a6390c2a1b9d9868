"""Anchors and matching, by hand; on either implementation of Detectron2."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from detectron2.modeling.matcher import Matcher


def test_anchors_are_ordered_by_row_column_size_and_ratio() -> None:
    make = DefaultAnchorGenerator(sizes=[[2, 4]], aspect_ratios=[[1.0, 4.0]], strides=[8], offset=0.5)
    (anchors,) = make([torch.zeros(1, 1, 2, 2)])
    assert make.num_anchors == make.num_cell_anchors == [4]
    assert make.box_dim == 4
    centres = anchors.get_centers().tolist()
    assert centres[::4] == [[4, 4], [12, 4], [4, 12], [12, 12]]
    # Ratio 4 is four times as high as wide: 1 x 4 has the area of 2 x 2, 2 x 8 that of 4 x 4.
    assert anchors[:4].tensor.tolist() == [[3, 3, 5, 5], [3.5, 2, 4.5, 6], [2, 2, 6, 6], [3, 0, 5, 8]]


def test_anchors_follow_the_maps_and_not_the_picture() -> None:
    make = DefaultAnchorGenerator(sizes=[[8], [16]], aspect_ratios=[1.0], strides=[8, 16], offset=0.0)
    fine, coarse = make([torch.zeros(2, 1, 3, 5), torch.zeros(2, 1, 2, 3)])
    assert (len(fine), len(coarse)) == (15, 6)
    assert fine[0].tensor.tolist() == [[-4, -4, 4, 4]]
    assert coarse[-1].get_centers().tolist() == [[32, 16]]


def test_one_list_serves_all_levels() -> None:
    make = DefaultAnchorGenerator(sizes=[[8, 9]], aspect_ratios=[[1.0]], strides=[8, 16, 32])
    assert make.num_anchors == [2, 2, 2]
    assert not make.state_dict()  # anchors are not saved
    with pytest.raises(AssertionError):
        DefaultAnchorGenerator(sizes=[[8], [9]], aspect_ratios=[[1.0]], strides=[8, 16, 32])


def test_the_config_puts_the_first_anchor_on_the_corner() -> None:
    make = build_anchor_generator(get_cfg(), [ShapeSpec(stride=16)])
    (anchors,) = make([torch.zeros(1, 1, 1, 1)])
    assert len(anchors) == 15
    torch.testing.assert_close(anchors.get_centers(), torch.zeros(15, 2))


QUALITY = torch.tensor([[0.1, 0.45, 0.55, 0.0, 0.3], [0.2, 0.41, 0.1, 0.0, 0.39]])


def test_labels_are_set_by_intervals_closed_below() -> None:
    matches, labels = Matcher([0.3, 0.55], [0, -1, 1])(QUALITY)
    assert matches.tolist() == [1, 0, 0, 0, 1]
    assert labels.tolist() == [0, -1, 1, 0, -1]
    assert labels.dtype == torch.int8


def test_each_object_gets_its_best_predictions_ties_included() -> None:
    quality = torch.tensor([[0.6, 0.2, 0.1, 0.0], [0.0, 0.3, 0.3, 0.1]])
    matches, labels = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)(quality)
    assert labels.tolist() == [1, 1, 1, 0]
    assert matches.tolist() == [0, 1, 1, 1]
    # A prediction keeps the object that it fits best, even if it is labelled for the sake of another one.
    matches, labels = Matcher([0.9], [0, 1], allow_low_quality_matches=True)(torch.tensor([[0.8, 0.7], [0.5, 0.4]]))
    assert (matches.tolist(), labels.tolist()) == ([0, 0], [1, 0])


def test_without_objects_all_is_background_and_a_negative_quality_is_refused() -> None:
    with pytest.raises(AssertionError):
        Matcher([0.5], [0, 1])(torch.tensor([[-0.1]]))
    matches, labels = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)(torch.zeros(0, 3))
    assert (matches.tolist(), labels.tolist()) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize(("thresholds", "labels"), [([0.5, 0.4], [0, -1, 1]), ([0.5], [0, 2]), ([0.5], [0, -1, 1])])
def test_contradictory_rules_are_refused(thresholds: list[float], labels: list[int]) -> None:
    with pytest.raises(AssertionError):
        Matcher(thresholds, labels)
