"""Ignore regions go through the augmentations and reach the detector as rows of class -1."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import d2_ext
from d2_ext.data.mapper import IgnoreRegionMapper, TestMapper
from d2_ext.errors import ConfigError

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image of 100 x 50 px with one object, one crowd and three ignore regions."""
    file = tmp_path / "a.png"
    Image.new("RGB", (100, 50)).save(file)
    return {
        "file_name": str(file),
        "image_id": 1,
        "width": 100,
        "height": 50,
        "annotations": [
            {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "iscrowd": 0},
            {"bbox": [50, 0, 80, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 1},
        ],
        "ignore_regions": [[0, 0, 40, 30], [90, 40, 30, 30], [60, 20, 0.4, 10]],
        "ignore_categories": [0, 11, 4],
    }


def _mapper(*augmentations: T.Transform | T.Augmentation, is_train: bool = True) -> IgnoreRegionMapper:
    return IgnoreRegionMapper(is_train, augmentations=list(augmentations), image_format="BGR")


def test_regions_and_crowds_follow_the_objects_as_class_minus_one(record: dict[str, Any]) -> None:
    out = _mapper()(record)
    instances = out["instances"]
    assert instances.gt_classes.tolist() == [2, -1, -1, -1]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.tolist() == [
        [10, 10, 30, 30],
        [0, 0, 40, 30],
        [90, 40, 100, 50],  # clipped to the image
        [50, 0, 80, 10],  # the crowd; the third region is 0.4 px wide and vanishes
    ]
    assert instances.image_size == (50, 100)
    assert not {"ignore_regions", "ignore_categories", "annotations"} & set(out)


def test_regions_are_flipped_and_resized_with_the_image(record: dict[str, Any]) -> None:
    # flip: x -> 100 - x; then twice the size
    out = _mapper(T.HFlipTransform(100), T.ResizeTransform(50, 100, 100, 200))(record)
    assert out["image"].shape == (3, 100, 200)
    assert out["instances"].gt_boxes.tensor.tolist()[:2] == [[140, 20, 180, 60], [120, 0, 200, 60]]


def test_a_turned_region_becomes_its_enclosing_box(record: dict[str, Any]) -> None:
    record["ignore_regions"] = [[40, 20, 20, 10]]  # centre (50, 25), which a quarter turn keeps
    out = _mapper(T.RotationTransform(50, 100, 90, expand=False))(record)
    torch.testing.assert_close(out["instances"].gt_boxes.tensor[1], torch.tensor([45.0, 15.0, 55.0, 35.0]))


def test_a_region_outside_the_crop_is_dropped(record: dict[str, Any]) -> None:
    out = _mapper(T.CropTransform(5, 5, 40, 40))(record)  # x and y from 5 to 45
    assert out["instances"].gt_boxes.tensor.tolist() == [[5, 5, 25, 25], [0, 0, 35, 25]]
    assert out["instances"].gt_classes.tolist() == [2, -1]


def test_an_image_without_objects_keeps_its_regions(record: dict[str, Any]) -> None:
    record["annotations"] = []
    out = _mapper()(record)
    assert out["instances"].gt_classes.tolist() == [-1, -1]


def test_without_regions_and_crowds_it_equals_the_stock_mapper(record: dict[str, Any]) -> None:
    del record["annotations"][1], record["ignore_regions"], record["ignore_categories"]
    ours = _mapper(T.HFlipTransform(100))(record)
    stock = DatasetMapper(True, augmentations=[T.HFlipTransform(100)], image_format="BGR")(record)
    assert torch.equal(ours["image"], stock["image"])
    assert torch.equal(ours["instances"].gt_boxes.tensor, stock["instances"].gt_boxes.tensor)
    assert torch.equal(ours["instances"].gt_classes, stock["instances"].gt_classes)


def test_the_record_is_not_changed_and_testing_is_the_stock_one(record: dict[str, Any]) -> None:
    before = copy.deepcopy(record)
    _mapper(T.HFlipTransform(100))(record)
    assert record == before
    out = _mapper(is_train=False)(record)
    assert "instances" not in out
    assert (out["height"], out["width"]) == (50, 100)


def test_it_is_built_from_a_config_and_refuses_masks() -> None:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    assert isinstance(IgnoreRegionMapper(cfg, is_train=True), DatasetMapper)
    cfg.MODEL.MASK_ON = True
    with pytest.raises(ConfigError, match="IGNORE_REGIONS=True works for boxes only"):
        IgnoreRegionMapper(cfg, is_train=True)


def test_in_testing_the_objects_come_along_in_the_frame_of_the_resized_image(record: dict[str, Any]) -> None:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST = 75
    out = TestMapper(cfg)(record)
    assert out["image"].shape == (3, 75, 150)
    assert out["instances"].image_size == (75, 150)
    assert out["instances"].gt_boxes.tensor.tolist() == [[15, 15, 45, 45]]  # the crowd is no object
    assert out["instances"].gt_classes.tolist() == [2]
    del record["annotations"]
    assert "instances" not in TestMapper(cfg)(record)
