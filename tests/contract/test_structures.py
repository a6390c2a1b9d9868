"""Boxes, instances and batches of pictures, by hand; on either implementation of Detectron2."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import (
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.boxes import pairwise_intersection


def boxes(*rows: list[float]) -> Boxes:
    return Boxes(torch.tensor(rows).reshape(-1, 4))


@pytest.mark.parametrize(
    "box", [[1, 2, 3, 4], (1.5, 2.0, 3.0, 4.0), np.array([[1, 2, 3, 4]]), torch.tensor([[1.0, 2, 3, 4]]).double()]
)
def test_box_modes_convert_and_keep_the_type(box: list | tuple | np.ndarray | torch.Tensor) -> None:
    before = copy.deepcopy(box)
    converted = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(converted) is type(box)
    assert getattr(converted, "dtype", None) == getattr(box, "dtype", None)
    x, y, w, h = np.ravel(np.asarray(box))
    np.testing.assert_array_equal(np.ravel(np.asarray(converted)), [x, y, x + w, y + h])
    np.testing.assert_array_equal(np.asarray(box), np.asarray(before))  # the input stays
    back = BoxMode.convert(converted, 0, 1)  # modes are integers too
    np.testing.assert_array_equal(np.ravel(np.asarray(back)), [x, y, w, h])


def test_rotated_boxes_become_their_enclosing_boxes() -> None:
    # 4 wide, 2 high around (10, 20), turned by a right angle: 2 wide, 4 high.
    assert BoxMode.convert([10.0, 20.0, 4.0, 2.0, 90.0], 4, 0) == pytest.approx([9, 18, 11, 22])
    assert BoxMode.convert([8.0, 19.0, 4.0, 2.0], 1, 4) == [10, 20, 4, 2, 0]


def test_box_modes_without_conversion_are_refused() -> None:
    with pytest.raises(AssertionError):
        BoxMode.convert([0.0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
    with pytest.raises(NotImplementedError):
        BoxMode.convert([0.0, 0, 1, 1], BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)
    with pytest.raises(AssertionError):
        BoxMode.convert([0.0, 0, 1], 0, 1)
    assert json.loads(json.dumps({"mode": BoxMode.XYWH_ABS})) == {"mode": 1}


def test_boxes_are_always_float32_of_four_columns_and_know_areas_centers_and_emptiness() -> None:
    assert Boxes(torch.tensor([[1, 2, 3, 4]], dtype=torch.int64)).tensor.dtype == torch.float32
    assert Boxes([]).tensor.shape == Boxes.cat([]).tensor.shape == (0, 4)
    with pytest.raises(AssertionError):
        Boxes(torch.zeros(2, 5))
    b = boxes([0, 0, 2, 3], [1, 1, 1, 9], [5, 5, 4, 6])
    assert b.area().tolist() == [6, 0, -1]
    assert b.get_centers().tolist() == [[1, 1.5], [1, 5], [4.5, 5.5]]
    assert b.nonempty().tolist() == [True, False, False]
    assert b.nonempty(threshold=2).tolist() == [False, False, False]  # strictly longer


def test_boxes_clip_and_scale_in_place_and_are_indexed_to_boxes() -> None:
    b = boxes([-5, 3, 50, 70])
    b.clip((40, 30))  # height, width
    assert b.tensor.tolist() == [[0, 3, 30, 40]]
    b.scale(2, 0.5)
    assert b.tensor.tolist() == [[0, 1.5, 60, 20]]
    with pytest.raises(AssertionError):
        boxes([0, 0, float("nan"), 1]).clip((40, 30))
    b = boxes([0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3])
    assert b[1].tensor.tolist() == [[0, 0, 2, 2]]
    assert b[torch.tensor([True, False, True])].area().tolist() == [1, 9]
    assert b[1:].area().tolist() == [4, 9]
    assert [row.tolist() for row in b[:1]] == [[0, 0, 1, 1]]
    assert Boxes.cat([b, b[0]]).area().tolist() == [1, 4, 9, 1]
    assert len(b) == 3


def test_overlaps_and_distances_from_points_to_sides_by_hand() -> None:
    a, b = boxes([0, 0, 10, 10]), boxes([5, 0, 15, 10], [20, 20, 30, 30], [2, 2, 4, 4])
    assert pairwise_intersection(a, b).tolist() == [[50, 0, 4]]
    assert pairwise_iou(a, b)[0].tolist() == pytest.approx([50 / 150, 0, 0.04])
    assert pairwise_ioa(a, b)[0].tolist() == pytest.approx([0.5, 0, 1])
    empty = boxes([3, 3, 3, 3])  # overlaps nothing, and gives no NaN
    assert pairwise_iou(empty, empty).tolist() == [[0]]
    assert pairwise_ioa(boxes([0, 0, 9, 9]), empty).tolist() == [[0]]
    assert pairwise_iou(Boxes([]), empty).shape == (0, 1)
    distances = pairwise_point_box_distance(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), boxes([1, 1, 10, 20]))
    assert distances.tolist() == [[[2, 3, 7, 16]], [[-1, -1, 10, 20]]]


def test_instances_hold_fields_of_equal_length() -> None:
    objects = Instances((4, 6), scores=torch.tensor([0.1, 0.9]))
    objects.names = ["a", "b"]
    assert objects.image_size == (4, 6)
    assert (objects.has("names"), "scores" in objects.get_fields(), len(objects)) == (True, True, 2)
    with pytest.raises(AssertionError):
        objects.gt_classes = torch.zeros(3)
    with pytest.raises(AttributeError):
        _ = objects.missing
    objects.remove("names")
    assert not objects.has("names")


def test_instances_are_indexed_field_by_field() -> None:
    objects = Instances((4, 6), pred_boxes=boxes([0, 0, 1, 1], [0, 0, 2, 2]), ids=torch.tensor([7, 8]))
    assert objects[objects.ids > 7].pred_boxes.area().tolist() == [4]
    assert len(objects[-1]) == 1
    assert objects[-1].ids.tolist() == [8]
    assert objects[:0].pred_boxes.tensor.shape == (0, 4)
    with pytest.raises(IndexError):
        objects[2]
    with pytest.raises(NotImplementedError):
        iter(objects)
    with pytest.raises(NotImplementedError):
        len(Instances((4, 6)))


def test_instances_concatenate_tensors_boxes_and_lists() -> None:
    one = Instances((4, 6), b=boxes([0, 0, 1, 1]), t=torch.tensor([1]), names=["x"])
    two = Instances((4, 6), b=boxes([0, 0, 2, 2]), t=torch.tensor([2]), names=["y"])
    both = Instances.cat([one, two])
    assert both.b.area().tolist() == [1, 4]
    assert both.t.tolist() == [1, 2]
    assert both.names == ["x", "y"]
    assert Instances.cat([one]) is one
    with pytest.raises(AssertionError):
        Instances.cat([one, Instances((5, 6), b=one.b, t=one.t, names=one.names)])


def test_instances_survive_pickling_and_moving() -> None:
    objects = Instances((4, 6), t=torch.tensor([1.0]), names=["x"])
    for same in (pickle.loads(pickle.dumps(objects)), objects.to("cpu")):
        assert same is not objects
        assert (same.image_size, same.t.tolist(), same.names) == ((4, 6), [1], ["x"])
    assert str(objects).startswith("Instances(num_instances=1, image_height=4, image_width=6, fields=[t: tensor(")


def test_pictures_are_padded_right_and_at_the_bottom() -> None:
    images = ImageList.from_tensors([torch.ones(3, 4, 7), torch.ones(3, 6, 2)], 4, pad_value=2.0)
    assert images.tensor.shape == (2, 3, 8, 8)
    assert images.image_sizes == [(4, 7), (6, 2)]
    assert images.tensor[1, 0, 0].tolist() == [1, 1, 2, 2, 2, 2, 2, 2]
    assert images.tensor[0].sum() == 3 * (28 + 2 * (64 - 28))
    assert (images[1].shape, len(images), images.device.type) == ((3, 6, 2), 2, "cpu")
    assert images.to(torch.float64).tensor.dtype == torch.float64


def test_traced_padding_holds_for_other_sizes() -> None:
    def pad(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = ImageList.from_tensors(images, 4)
        return batch.tensor, batch.image_sizes[1]

    traced = torch.jit.trace(pad, ([torch.ones(1, 9, 3), torch.ones(1, 2, 5)],))
    tensor, size = traced([torch.ones(1, 2, 6), torch.ones(1, 13, 4)])
    assert (tensor.shape, size.tolist()) == ((2, 1, 16, 8), [13, 4])


def test_padding_constraints_replace_the_divisibility() -> None:
    picture = torch.ones(1, 5, 5)
    assert ImageList.from_tensors([picture], 4).tensor.shape == (1, 1, 8, 8)
    assert ImageList.from_tensors([picture], 4, padding_constraints={"size_divisibility": 3}).tensor.shape[-1] == 6
    assert ImageList.from_tensors([picture], 4, padding_constraints={"square_size": 10}).tensor.shape[-2:] == (12, 12)
    assert ImageList.from_tensors([picture]).tensor.shape == (1, 1, 5, 5)
    with pytest.raises(AssertionError):
        ImageList.from_tensors([])
