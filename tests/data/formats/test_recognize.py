"""Every format is recognized by looking, reads the same box, and says what it left out."""

from __future__ import annotations

from pathlib import Path

from d2_ext.data.formats import FORMATS, recognize
from d2_ext.data.formats.base import Split
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

import pytest

from helpers.own_folders import BOX, SPLITS, coco_folder, folder_of, image, voc_folder, yolo_folder


def _read(split: Split) -> list[dict]:
    return split.read(Problems())


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_format_is_recognized_and_gives_the_box_in_px(data_format: str, tmp_path: Path) -> None:
    data = recognize(folder_of(data_format, tmp_path / "mine"))
    assert data.format == data_format
    train = next(split for split in data.splits if split.name == "train")
    records = _read(train)
    assert len(records) == train.num_images == (2 if data_format == "uavdt" else 3)
    for record in records:
        (annotation,) = record["annotations"]
        assert annotation["bbox"] == pytest.approx(BOX)
        assert (record["width"], record["height"]) == (100, 80)
        assert Path(record["file_name"]).is_file()
    assert len({record["image_id"] for record in records}) == len(records)
    assert {split.name for split in data.splits} == {"train", "test" if data_format == "uavdt" else "val"}
    assert data.notes[0], "the evidence"


@pytest.mark.parametrize(
    ("data_format", "name"),
    [
        ("coco", "dog"),
        ("yolo", "dog"),
        ("voc", "dog"),
        ("visdrone", "car"),
        ("uavdt", "car"),
        ("crowdhuman", "person"),
        ("labelme", "dog"),
    ],
)
def test_the_category_is_the_position_of_the_class_name(data_format: str, name: str, tmp_path: Path) -> None:
    data = recognize(folder_of(data_format, tmp_path))
    (annotation,) = _read(data.splits[0])[0]["annotations"]
    assert data.classes[annotation["category_id"]] == name


def test_a_folder_that_holds_only_the_data_sets_folder_stands_for_it(tmp_path: Path) -> None:
    inner = yolo_folder(tmp_path / "download/unpacked/mine", SPLITS)
    assert recognize(tmp_path).root == inner


def test_two_formats_in_one_folder_need_a_word_and_take_it(tmp_path: Path) -> None:
    yolo_folder(coco_folder(tmp_path, SPLITS), SPLITS)
    with pytest.raises(DatasetError, match=r"coco or yolo.*instances_train2017\.json.*DATASETS\.FORMAT coco"):
        recognize(tmp_path)
    assert recognize(tmp_path, "yolo").format == "yolo"
    with pytest.raises(DatasetError, match="no format 'yolov8'. Did you mean 'yolo'"):
        recognize(tmp_path, "yolov8")


def test_a_folder_without_annotations_says_what_it_holds_and_what_was_expected(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(
        DatasetError, match=r"no known format; it contains images/, notes\.md\. Expected one of: .*coco"
    ):
        recognize(tmp_path)
    with pytest.raises(DatasetError, match="No folder"):
        recognize(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no files"):
        recognize(tmp_path / "empty")


def test_images_are_not_opened_to_recognize_a_folder(tmp_path: Path) -> None:
    for path in yolo_folder(tmp_path / "y", SPLITS).rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert [split.num_images for split in recognize(tmp_path / "y").splits] == [3, 1]
    for path in voc_folder(tmp_path / "v", SPLITS).rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert len(_read(recognize(tmp_path / "v").splits[0])) == 3, "the xml says the sizes"


def test_the_real_subsets_are_recognized_as_they_are_published(real_data: Path) -> None:
    found = {name: recognize(real_data / name) for name in ("visdrone", "hit_uav", "coco128")}
    assert {name: data.format for name, data in found.items()} == {
        "visdrone": "visdrone",
        "hit_uav": "coco",
        "coco128": "coco",
    }
    counts = {(name, split.name): len(_read(split)) for name, data in found.items() for split in data.splits}
    assert counts == {("visdrone", "train"): 67, ("visdrone", "val"): 22, ("hit_uav", "val"): 175} | {
        ("coco128", "train"): 128
    }
    assert found["hit_uav"].classes == ("Person", "Car", "Bicycle", "OtherVehicle")
    assert any("115 of its 290 images are not in 'images'" in note for note in found["hit_uav"].notes)
