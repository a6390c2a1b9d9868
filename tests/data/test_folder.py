"""Registered folders: names, the hold-out, what is told."""

from __future__ import annotations

import random
from pathlib import Path

from d2_ext.data.folder import describe, hold_out, register_folder
from d2_ext.errors import DatasetError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.own_folders import SPLITS, coco_folder, crowdhuman_folder, yolo_folder

STEMS = [f"p{i:02d}" for i in range(20)]


def _names(name: str) -> set[str]:
    return {Path(record["file_name"]).stem for record in DatasetCatalog.get(name)}


def test_splits_get_names_of_the_folder_and_the_classes(tmp_path: Path) -> None:
    own = register_folder(coco_folder(tmp_path / "my pets", {**SPLITS, "test": ["e", "f"]}))
    assert own.train == ("own_my_pets_train",)
    assert own.test == ("own_my_pets_val",)
    assert _names("own_my_pets_train") == {"a", "b", "c"}
    assert _names("own_my_pets_test") == {"e", "f"}
    metadata = MetadataCatalog.get("own_my_pets_val")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.evaluator_type == "coco"
    assert metadata.json_file.endswith("instances_val2017.json")
    assert any("own_my_pets_test is not used" in note for note in own.notes)


def test_one_split_is_divided_the_same_way_each_time(tmp_path: Path) -> None:
    own = register_folder(yolo_folder(tmp_path / "y", {"": STEMS}))
    train, val = (_names(f"own_y_{part}") for part in ("train", "val"))
    assert len(train) == own.images["own_y_train"] == 16
    assert len(val) == own.images["own_y_val"] == 4
    assert train | val == set(STEMS) == _names("own_y_all")
    assert any("4 of its 20 images are held out" in note for note in own.notes)
    assert "json_file" not in MetadataCatalog.get("own_y_val").as_dict()
    other = register_folder(tmp_path / "y", seed=1)
    assert _names(other.test[0]) != val
    again = register_folder(tmp_path / "y")
    assert _names(again.test[0]) == val


def test_the_hold_out_depends_on_neither_order_nor_place() -> None:
    records = [{"file_name": f"/here/{stem}.jpg"} for stem in STEMS]
    shuffled = [{"file_name": f"/there/{stem}.jpg"} for stem in random.Random(3).sample(STEMS, len(STEMS))]
    _, held = hold_out(records, Path("/here"), 0.3, 0)
    _, held_there = hold_out(shuffled, Path("/there"), 0.3, 0)
    assert len(held) == 6
    assert {Path(r["file_name"]).name for r in held} == {Path(r["file_name"]).name for r in held_there}
    assert [len(part) for part in hold_out(records[:2], Path("/here"), 0.01, 0)] == [1, 1], "one at least"


def test_a_known_format_keeps_its_own_metric(tmp_path: Path) -> None:
    register_folder(crowdhuman_folder(tmp_path / "crowd", SPLITS))
    assert MetadataCatalog.get("own_crowd_val").evaluator_type == "crowdhuman"


def test_a_name_is_taken_over_by_the_folder_that_came_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = yolo_folder(tmp_path / "one/same", {"train": ["a"], "val": ["b"]})
    second = yolo_folder(tmp_path / "two/same", {"train": ["c"], "val": ["d"]})
    register_folder(first)
    register_folder(second)
    assert _names("own_same_train") == {"c"}
    assert "taken over" in caplog.text
    register_folder(first)
    assert _names("own_same_train") == {"a"}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"val": ["a"], "test": ["b"]}, "but none to train on"),
        ({"train": ["a"]}, "has 1 image with annotations"),
    ],
)
def test_folders_that_cannot_be_trained_and_judged_are_refused(
    tmp_path: Path, splits: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        register_folder(yolo_folder(tmp_path, splits))


def test_a_share_outside_0_to_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"share of 1\.5"):
        register_folder(tmp_path, share=1.5)


def test_the_description_names_format_classes_counts_and_use(tmp_path: Path) -> None:
    text = describe(register_folder(coco_folder(tmp_path / "told", SPLITS)))
    assert "format coco, 2 classes: cat, dog" in text
    assert "own_told_train       3 images        3 boxes  train on" in text
    assert "own_told_val         1 images        1 boxes  evaluate on" in text
