"""labelme's own json files: every kind of shape, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.data.formats import recognize
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

import pytest

from helpers.own_folders import SPLITS, images, labelme_folder, labelme_json, labelme_shape, write_json


def _one(root: Path, *shapes: Any, **changes: Any) -> Path:
    images(root, "ab")
    write_json(root / "a.json", {**labelme_json("a", shapes), **changes})
    write_json(root / "b.json", labelme_json("b", [labelme_shape("cat", [[1, 2], [5, 6]])]))
    return root


def _annotations(root: Path, problems: Problems | None = None) -> list[dict[str, Any]]:
    return recognize(root).splits[0].read(problems or Problems())[0]["annotations"]


def test_each_kind_of_shape_becomes_a_box(tmp_path: Path) -> None:
    triangle = [[10, 20], [40, 20], [40, 60]]
    found = _annotations(
        _one(
            tmp_path,
            labelme_shape("rectangle", [[40, 60], [10, 20]]),
            labelme_shape("circle", [[50, 40], [53, 44]], "circle"),
            labelme_shape("polygon", triangle, "polygon"),
            labelme_shape("point", [[3, 4]], "point"),
            labelme_shape("line", [[3, 4], [5, 6]], "line"),
        )
    )
    assert [a["bbox"] for a in found] == [[10, 20, 30, 40], [45, 35, 10, 10], [10, 20, 30, 40]]
    assert [a.get("segmentation") for a in found] == [None, None, [[10, 20, 40, 20, 40, 60]]]


def test_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    parts = [[[10, 20], [20, 20], [20, 30]], [[30, 50], [40, 50], [40, 60]]]
    shapes = [labelme_shape("dog", points, "polygon", group_id=1) for points in parts]
    (found,) = _annotations(_one(tmp_path, *shapes))
    assert found["bbox"] == [10, 20, 30, 40]
    assert len(found["segmentation"]) == 2


def test_ignored_labels_are_regions_and_the_size_comes_from_the_image_where_the_file_has_none(tmp_path: Path) -> None:
    root = _one(tmp_path, labelme_shape("__ignore__", [[1, 2], [9, 9]]), imageWidth=None)
    data = recognize(root)
    assert data.classes == ("cat",)
    record = data.splits[0].read(Problems())[0]
    assert (record["width"], record["height"], record["ignore_regions"]) == (100, 80, [[1, 2, 8, 7]])


def test_images_elsewhere_missing_and_without_a_json_are_told(tmp_path: Path) -> None:
    labelme_folder(tmp_path, SPLITS)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "train/a.jpg").rename(tmp_path / "pictures/far.jpg")
    write_json(tmp_path / "train/a.json", {**labelme_json("a", []), "imagePath": "..\\pictures\\far.jpg"})
    (tmp_path / "train/b.jpg").unlink()
    images(tmp_path / "train", ["new"])
    data = recognize(tmp_path)
    assert {split.name: split.num_images for split in data.splits} == {"train": 2, "val": 1}
    assert "1 of 4 images are missing and left out, first: that of train/b.json" in data.notes
    assert "1 images have no json and are left out, first: train/new.jpg" in data.notes
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DatasetError, match="None of the 4 json files"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        7,
        labelme_shape("", [[1, 2], [3, 4]]),
        labelme_shape("dog", [[1, 2], [3]]),
        labelme_shape("dog", [[1, 2], [3, float("nan")]]),
        labelme_shape("dog", [[1, 2], [3, 4]], shape_type=5),  # type: ignore[arg-type]
    ],
)
def test_a_malformed_shape_names_its_place(tmp_path: Path, shape: Any) -> None:
    data = recognize(_one(tmp_path, labelme_shape("dog", [[1, 2], [3, 4]]), shape))
    with pytest.raises(DatasetError, match=r"a\.json, shape 1: Expected a label"):
        data.splits[0].read(Problems())
