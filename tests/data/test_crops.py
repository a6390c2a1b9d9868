"""Crops that are placed on objects."""

from __future__ import annotations

from pathlib import Path

from d2_ext.config import add_d2_ext_config
from d2_ext.config.checks import check_config
from d2_ext.data.crops import CropMapper, ObjectCrop
from d2_ext.data.loader import build_train_mapper
from d2_ext.errors import ConfigError

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BoxMode

from helpers.own_folders import image


def _box(box: list[float], category: int = 0, crowd: int = 0) -> dict:
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "iscrowd": crowd}


def _crops(crop: ObjectCrop, boxes: list[dict], count: int = 200) -> np.ndarray:
    """XYXY px of so many crops of a 100x80 image (width x height)."""
    np.random.seed(0)
    crop.look_at({"annotations": boxes})
    found = [crop.get_transform(np.zeros((80, 100, 3), np.uint8)) for _ in range(count)]
    return np.array([[t.x0, t.y0, t.x0 + t.w, t.y0 + t.h] for t in found])


@pytest.mark.parametrize("box", [[0, 0, 5, 5], [95.5, 71.2, 100, 80], [40.3, 30.9, 60.1, 41], [0, 30, 3, 34]], ids=str)
def test_a_crop_holds_the_whole_object_and_lies_in_the_image(box: list[float]) -> None:
    crops = _crops(ObjectCrop("absolute", (32, 32), 0.999999), [_box(box)])
    assert (crops[:, :2] <= box[:2]).all()
    assert (crops[:, 2:] >= box[2:]).all()
    assert crops[:, :2].min() >= 0
    assert (crops[:, 2:] <= [100, 80]).all()
    if box[0] == 40.3:
        assert len(np.unique(crops, axis=0)) > 4  # not always the same place


def test_a_crop_lies_in_an_object_that_is_larger() -> None:
    crops = _crops(ObjectCrop("absolute", (16, 16), 0.999999), [_box([20, 10, 80, 70])])
    assert (crops[:, :2] >= [20, 10]).all()
    assert (crops[:, 2:] <= [80, 70]).all()


def test_classes_are_drawn_evenly() -> None:
    boxes = [_box([1, 1, 6, 6])] * 30 + [_box([90, 70, 95, 75], category=3)]
    rare = (_crops(ObjectCrop("absolute", (20, 20), 0.999999), boxes)[:, 0] > 50).mean()
    assert 0.4 < rare < 0.6


def test_the_share_of_the_others_is_random() -> None:
    crops = _crops(ObjectCrop("absolute", (10, 10), 0.5), [_box([0, 0, 8, 8])], count=400)
    assert 0.4 < (crops[:, :2] == 0).all(axis=1).mean() < 0.6  # only one place holds an object in the corner


@pytest.mark.parametrize("boxes", [[], [_box([0, 0, 8, 8], crowd=1)]], ids=["none", "crowd"])
def test_without_objects_the_place_is_random(boxes: list[dict]) -> None:
    crops = _crops(ObjectCrop("absolute", (10, 10), 0.999999), boxes)
    assert crops[:, 0].max() > 70
    assert crops[:, 1].max() > 50


def _cfg(**crop: object) -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    cfg.INPUT.CROP.merge_from_list([x for item in crop.items() for x in item])
    return cfg


def test_the_mapper_of_a_config_cuts_images_at_objects(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", (200, 150))
    cfg = _cfg(ENABLED=True, TYPE="absolute", SIZE=[40, 50], OBJECT_SHARE=0.999999)
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    mapper = build_train_mapper(cfg)
    assert isinstance(mapper, CropMapper)
    record = {"file_name": str(path), "width": 200, "height": 150, "image_id": 1, "annotations": [_box([3, 4, 20, 16])]}
    for _ in range(5):
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 40, 50)
        sides = mapped["instances"].gt_boxes.tensor[0].reshape(2, 2).diff(dim=0)[0]
        assert sides.tolist() == [17, 12]  # the object is whole
        assert (mapped["width"], mapped["height"]) == (200, 150)


@pytest.mark.parametrize("change", [{"ENABLED": False}, {"TILES": True}], ids=["no crop", "tiles"])
def test_a_share_that_does_nothing_is_refused(change: dict) -> None:
    cfg = _cfg(ENABLED=change.get("ENABLED", True), TYPE="absolute", SIZE=[40, 50], OBJECT_SHARE=0.5)
    cfg.INPUT.TILES.ENABLED = change.get("TILES", False)
    with pytest.raises(ConfigError, match="OBJECT_SHARE is 0.5 with INPUT"):
        check_config(cfg)
