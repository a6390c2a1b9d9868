"""Any folder with a COCO json can be registered, and a wrong one says what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2_ext.data.formats.coco import register_coco_folder
from d2_ext.errors import DatasetError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

NAME = "test_coco_folder"
CONTENT: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 1},
    ],
    "categories": [{"id": 5, "name": "five"}, {"id": 3, "name": "three"}],
}


@pytest.fixture(autouse=True)
def _forget_name() -> Iterator[None]:
    yield
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
    if NAME in MetadataCatalog.list():
        MetadataCatalog.remove(NAME)


def _write(root: Path, content: Any, *, json_at: str = "annotations/any.json", images_at: str = "images") -> Path:
    for file in (root / json_at, root / images_at / "a.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
    (root / json_at).write_text(json.dumps(content))
    Image.new("RGB", (20, 10)).save(root / images_at / "a.png")
    return root


@pytest.mark.parametrize(
    ("json_at", "images_at"),
    [("annotations/any.json", "images"), ("any.json", "."), ("any.json", "train2017"), ("any.json", "images/val")],
)
def test_json_and_images_are_found_in_the_usual_places(tmp_path: Path, json_at: str, images_at: str) -> None:
    register_coco_folder(NAME, _write(tmp_path, CONTENT, json_at=json_at, images_at=images_at))
    (record,) = DatasetCatalog.get(NAME)
    assert Path(record["file_name"]).is_file()
    assert [a["category_id"] for a in record["annotations"]] == [1, 0]  # ids 3, 5 -> 0, 1
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["three", "five"]
    assert metadata.evaluator_type == "coco"


def test_places_can_be_named(tmp_path: Path) -> None:
    root = _write(tmp_path, CONTENT, json_at="deep/er/x.json", images_at="images/of/mine")
    register_coco_folder(NAME, root, json_file="deep/er/x.json", image_dir="images/of/mine")
    assert len(DatasetCatalog.get(NAME)) == 1
    with pytest.raises(DatasetError, match="already registered"):
        register_coco_folder(NAME, root)


def _change(edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    edit(content)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds a list"),
        (_change(lambda c: c.update(annotation=c.pop("annotations"))), "no list 'annotations'.*annotation"),
        (_change(lambda c: c.update(images=[])), "no list 'images', or an empty one"),
        (_change(lambda c: c["images"][0].pop("file_name")), r"images\[0\] has no file_name"),
        (_change(lambda c: c["annotations"][1].pop("iscrowd")), r"annotations\[1\] has no iscrowd"),
        (_change(lambda c: c["annotations"][1].update(id=1)), "id 1 occurs more than once"),
        (_change(lambda c: c["annotations"][0].update(image_id=8)), "annotation 1 has image_id 8"),
        (_change(lambda c: c["annotations"][0].update(category_id=1)), "annotation 1 has category_id 1"),
        (_change(lambda c: c["annotations"][0].update(bbox=[1, 2, 3])), "Expected .x, y, width, height."),
        (_change(lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 3])), "without area"),
        (_change(lambda c: c["images"][0].update(file_name="b.png")), "'b.png', the first of the json, was not found"),
        (
            _change(lambda c: c["images"].append({"id": 8, "file_name": "c.png", "width": 1, "height": 1})),
            "1 of 2 images .* first: 'c.png'",
        ),
    ],
)
def test_a_wrong_json_is_refused_with_the_reason(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        register_coco_folder(NAME, _write(tmp_path, content))
    assert NAME not in DatasetCatalog


def test_missing_and_ambiguous_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No folder"):
        register_coco_folder(NAME, tmp_path / "none")
    with pytest.raises(DatasetError, match="No json in"):
        register_coco_folder(NAME, tmp_path)
    root = _write(tmp_path, CONTENT)
    with pytest.raises(DatasetError, match=r"No file .*other\.json"):
        register_coco_folder(NAME, root, json_file="other.json")
    (root / "annotations/second.json").write_text("{")
    with pytest.raises(DatasetError, match=r"2 json files: any\.json, second\.json"):
        register_coco_folder(NAME, root)
    with pytest.raises(DatasetError, match="not valid json"):
        register_coco_folder(NAME, root, json_file="annotations/second.json")


def test_annotation_id_zero_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    register_coco_folder(NAME, _write(tmp_path, _change(lambda c: c["annotations"][0].update(id=0))))
    assert "annotation with id 0" in caplog.text


def test_real_folders_are_taken_or_refused_clearly(real_data: Path) -> None:
    register_coco_folder(NAME, real_data / "coco128")
    records = DatasetCatalog.get(NAME)
    crowds = sum(a["iscrowd"] for r in records for a in r["annotations"])
    assert (len(records), sum(len(r["annotations"]) for r in records), crowds) == (128, 939, 10)
    with pytest.raises(DatasetError, match=r"has no file_name; it has filename"):
        register_coco_folder("test_hit_uav", real_data / "hit_uav")
