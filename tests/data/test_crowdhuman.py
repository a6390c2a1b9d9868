"""The CrowdHuman reader on a split written by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d2_ext.data.formats.crowdhuman import load_crowdhuman
from d2_ext.errors import DatasetError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

BOXES: list[dict[str, Any]] = [
    {"tag": "person", "fbox": [10, 20, 30, 40], "vbox": [11, 21, 9, 9], "extra": {"occ": 1}},
    {"tag": "person", "fbox": [-5, -10, 25, 30], "extra": {}},  # 5 px left of and 10 px above the image
    {"tag": "person", "fbox": [1, 2, 3, 4], "extra": {"ignore": 1}},
    {"tag": "mask", "fbox": [90, 50, 40, 40], "extra": {"ignore": 1}},
    {"tag": "person", "fbox": [200, 0, 10, 10], "extra": {}},  # outside
]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    (tmp_path / "Images").mkdir()
    Image.new("RGB", (100, 60)).save(tmp_path / "Images" / "273271,c9db.jpg")
    (tmp_path / "annotation_train.odgt").write_text(json.dumps({"ID": "273271,c9db", "gtboxes": BOXES}) + "\n\n")
    return tmp_path


def load(split: Path) -> list[dict[str, Any]]:
    return load_crowdhuman(split / "annotation_train.odgt", split / "Images")


def test_whole_bodies_are_clipped_and_the_rest_is_ignored(split: Path, caplog: pytest.LogCaptureFixture) -> None:
    (record,) = load(split)
    assert (record["width"], record["height"], record["image_id"]) == (100, 60, "273271,c9db")
    assert [a["bbox"] for a in record["annotations"]] == [[10, 20, 30, 40], [0, 0, 20, 20]]
    assert {a["category_id"] for a in record["annotations"]} == {0}
    assert record["ignore_regions"] == [[1, 2, 3, 4], [90, 50, 10, 10]]
    assert Path(record["file_name"]).is_file()
    assert "dropped 1 boxes outside" in caplog.text


def test_both_splits_are_registered_with_their_metric() -> None:
    for name in ("crowdhuman_train", "crowdhuman_val"):
        assert name in DatasetCatalog
        assert MetadataCatalog.get(name).evaluator_type == "crowdhuman"
        assert MetadataCatalog.get(name).thing_classes == ["person"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ID": "a", ', "line 1 is not valid json"),
        ('["a"]', "line 1 has no text 'ID' and list 'gtboxes'"),
        ('{"ID": "missing", "gtboxes": []}', r"No image '.*missing\.jpg'"),
        ('{"ID": "273271,c9db", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}', r"line 1: 'fbox' is \[1, 2, 3\]"),
        ('{"ID": "273271,c9db", "gtboxes": [{"fbox": [1, 2, 3, NaN]}]}', "line 1: 'fbox' is"),
        ("", "holds no line"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(split: Path, line: str, message: str) -> None:
    (split / "annotation_train.odgt").write_text(line)
    with pytest.raises(DatasetError, match=message):
        load(split)


def test_a_missing_split_and_a_broken_image_are_named(split: Path) -> None:
    (split / "Images" / "273271,c9db.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="cannot be read"):
        load(split)
    with pytest.raises(DatasetError, match="set DETECTRON2_DATASETS"):
        load_crowdhuman(split / "annotation_val.odgt", split / "Images")
