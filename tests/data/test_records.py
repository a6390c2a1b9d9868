"""Records of a registered data set: what cannot be trained on is named, also when it changes after the checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.data import register_coco_folder
from d2_ext.data.records import check_records, load_records, naming_unreadable
from d2_ext.errors import DatasetError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from helpers.own_folders import image
from helpers.small_runs import write_images

NAMES = (f"records_{number}" for number in itertools.count())


@pytest.fixture
def name() -> Iterator[str]:
    name = next(NAMES)
    yield name
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


def _record(path: Path, **changes: Any) -> dict[str, Any]:
    if not path.is_file():
        image(path)  # 100 x 80 px
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    return {"file_name": str(path), "image_id": 1, "width": 100, "height": 80, "annotations": [box], **changes}


def _annotation(**changes: Any) -> dict[str, Any]:
    return {"annotations": [{"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **changes}]}


def test_usable_records_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rotated = {"bbox": [50, 40, -5, 3, 30], "bbox_mode": BoxMode.XYWHA_ABS}
    corners = {"bbox": [1, 2, 1, 4], "bbox_mode": BoxMode.XYXY_ABS}
    records = [
        _record(tmp_path / "a.jpg"),
        _record(tmp_path / "b.jpg", image_id=2, **_annotation(**rotated)),
        _record(tmp_path / "c.jpg", image_id=3, **_annotation(**corners)),
    ]
    check_records("mine", records, 1)
    assert "1 boxes have no area" in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"file_name": 7}, "file_name 7. Expected its path"),
        ({"width": 0}, "width 0. Expected px"),
        ({"width": 99}, "100 x 80 px"),
        (_annotation(bbox=None), "bbox None"),
        (_annotation(bbox=[1, 2, 3]), "four finite numbers"),
        (_annotation(bbox=[1, 2, float("nan"), 4]), "four finite numbers"),
        (_annotation(bbox=[1, 2, -3, 4]), "negative side"),
        (_annotation(bbox=[9, 2, 3, 4], bbox_mode=BoxMode.XYXY_ABS), "negative side"),
        (_annotation(category_id=1), "class 1. Expected one of 0 to 0"),
        (_annotation(category_id=None), "class None"),
    ],
    ids=str,
)
def test_a_record_that_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        check_records("mine", [_record(tmp_path / "a.jpg", **changes)], 1)


def test_ids_of_images_are_unique_and_classes_whole_numbers_where_their_number_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="image_id 1 of another image"):
        check_records("mine", [_record(tmp_path / "a.jpg"), _record(tmp_path / "b.jpg")])
    with pytest.raises(DatasetError, match="class -1. Expected a whole number from 0"):
        check_records("mine", [_record(tmp_path / "a.jpg", **_annotation(category_id=-1))])


def test_what_a_loader_raises_becomes_one_error(name: str) -> None:
    DatasetCatalog.register(name, lambda: {}["images"])
    with pytest.raises(DatasetError, match=f"Data set '{name}' cannot be loaded: KeyError: 'images'"):
        load_records(name)
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, list)
    with pytest.raises(DatasetError, match="holds no image"):
        load_records(name)


def test_annotations_that_changed_since_the_checks_are_named(name: str, tmp_path: Path) -> None:
    register_coco_folder(name, write_images(tmp_path / "data", 2), json_file="all.json")
    with naming_unreadable([name]):
        assert len(DatasetCatalog.get(name)) == 2
    (tmp_path / "data/all.json").write_text("{")
    with pytest.raises(DatasetError, match=r"all\.json' is not valid json"), naming_unreadable([name]):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("error", [ValueError("of something else"), DatasetError("of ours"), RuntimeError("no data")])
def test_other_errors_stay_what_they_are(name: str, tmp_path: Path, error: Exception) -> None:
    register_coco_folder(name, write_images(tmp_path / "data", 2), json_file="all.json")
    with pytest.raises(type(error)) as raised, naming_unreadable([name]):
        raise error
    assert raised.value is error
