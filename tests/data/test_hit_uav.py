"""HIT-UAV in a small folder that is made as the published one: nearly COCO's keys, ids from 0, DontCare."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext.data import HIT_UAV_CLASSES, load_hit_uav
from d2_ext.data.builtin import register_all_hit_uav
from d2_ext.data.hit_uav import HIT_UAV_DATES, HIT_UAV_SPLITS
from d2_ext.errors import DatasetError
from d2_ext.evaluation.coco_regions import coco_with_regions

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.own_folders import images

# Split -> the days of its images: each day of the data once, and one day (20210114) on both sides, as published.
DAYS = {
    "train": ["20201217", "20210114", "20210115", "20210116", "20210118", "20210119", "20210120"],
    "val": ["20210121"],
    "test": ["20210123", "20210114"],
}
CATEGORIES = [{"id": i, "name": name} for i, name in enumerate([*HIT_UAV_CLASSES, "DontCare"])]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``<datasets>`` with ``hit_uav/normal_json``: a car and a region to be ignored in each image."""
    base = tmp_path / "hit_uav" / "normal_json"
    (base / "annotations").mkdir(parents=True)
    number = 0
    for split, days in DAYS.items():
        rows, annotations = [], []
        for day in days:
            rows.append({"id": number, "filename": f"1_60_30_0_{number:05d}.jpg", "width": 64, "height": 48})
            rows[-1]["date_captured"] = day
            for category, box in ((1, [10, 20, 30, 10]), (4, [0, 0, 8, 8])):
                annotations.append({"id": len(annotations), "image_id": number, "category_id": category, "bbox": box})
            number += 1
        images(base / split, [row["filename"].removesuffix(".jpg") for row in rows])
        content = {"images": rows, "annotation": annotations, "categories": CATEGORIES}
        (base / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def _numbers(root: Path, split: str) -> list[int]:
    return [record["image_id"] for record in load_hit_uav(root / "hit_uav", split)]


def test_the_official_splits_are_those_of_the_jsons(root: Path) -> None:
    assert [_numbers(root, split) for split in ("train", "val", "test")] == [list(range(7)), [7], [8, 9]]


def test_a_disjoint_split_gives_all_images_of_a_day_to_one_side(root: Path) -> None:
    sides = {split: _numbers(root, f"disjoint_{split}") for split in ("train", "val", "test")}
    assert sides == {"train": [0, 2, 3, 6, 7], "val": [8], "test": [1, 4, 5, 9]}
    assert sorted(number for numbers in sides.values() for number in numbers) == list(range(10))


def test_each_day_of_the_data_stands_on_one_side() -> None:
    days = [day for side in HIT_UAV_DATES.values() for day in side]
    assert len(days) == len(set(days)) == 9


def test_dont_care_is_neither_object_nor_background(root: Path) -> None:
    record = load_hit_uav(root / "hit_uav", "val")[0]
    assert [a["category_id"] for a in record["annotations"]] == [1]
    assert record["annotations"][0]["bbox"] == [10, 20, 30, 10]
    assert record["ignore_regions"] == [[0, 0, 8, 8]]


def test_the_names_are_registered_below_the_folder_of_all_data(root: Path) -> None:
    names = [f"hit_uav_{split}" for split in HIT_UAV_SPLITS]
    assert all(name in DatasetCatalog for name in names), "importing d2_ext.data registers them"
    kept = {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names}
    try:
        register_all_hit_uav(root)
        assert len(DatasetCatalog.get("hit_uav_disjoint_test")) == 4
        assert MetadataCatalog.get("hit_uav_test").thing_classes == list(HIT_UAV_CLASSES)
        crowds = [row for row in coco_with_regions("hit_uav_test")["annotations"] if row["iscrowd"]]
        assert len(crowds) == 2 * len(HIT_UAV_CLASSES), "a region is a crowd of every class for COCO's metric"
    finally:
        for name, (load, metadata) in kept.items():
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)
            DatasetCatalog.register(name, load)
            MetadataCatalog[name] = metadata


def test_the_content_of_normal_json_may_lie_in_the_folder_itself(root: Path) -> None:
    assert len(load_hit_uav(root / "hit_uav" / "normal_json", "train")) == 7


def test_what_is_not_the_published_folder_is_said(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"annotations.train\.json'. Expected HIT-UAV as published"):
        load_hit_uav(root, "train")
    with pytest.raises(DatasetError, match="no split 'valid'. Expected one of train, val"):
        load_hit_uav(root / "hit_uav", "valid")
    base = root / "hit_uav" / "normal_json"
    (base / "test" / "1_60_30_0_00009.jpg").unlink()
    with pytest.raises(DatasetError, match="1 of the 2 images of .*test.json' are not in"):
        load_hit_uav(base, "test")
    images(base / "test", ["1_60_30_0_00009"])

    file = base / "annotations" / "val.json"
    content = json.loads(file.read_text())
    content["images"][0]["date_captured"] = "20220101"
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="1 images .* have date_captured '20220101'"):
        load_hit_uav(base, "disjoint_train")
    for split in DAYS:
        file = base / "annotations" / f"{split}.json"
        content = json.loads(file.read_text())
        content["categories"][1]["name"] = "Lorry"
        file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="has the classes Person, Lorry"):
        load_hit_uav(base, "val")
