"""The reader of the official VisDrone-DET form: hand-written folders, malformed files, the real subset."""

from __future__ import annotations

import logging
from pathlib import Path

from d2_ext.data.formats.visdrone import VISDRONE_CLASSES, load_visdrone, register_visdrone
from d2_ext.errors import DatasetError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image

GOOD = "10,20,30,40,1,4,0,0\n"


def _folder(root: Path, texts: dict[str, str], size: tuple[int, int] = (100, 80)) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for stem, text in texts.items():
        Image.new("RGB", size).save(root / "images" / f"{stem}.jpg")
        (root / "annotations" / f"{stem}.txt").write_text(text)
    return root


def test_objects_become_annotations_and_the_rest_ignore_regions(tmp_path: Path) -> None:
    text = "10,20,30,40,1,4,0,0\n0,0,5,5,0,0,0,0,\n1,2,3,4,1,11,0,0\n6,7,8,9,0,1,0,0\n\n50.5,6,7,8,1,10,0,2"
    (record,) = load_visdrone(_folder(tmp_path, {"a": text}))
    assert (record["width"], record["height"], record["image_id"]) == (100, 80, 1)
    assert [(a["bbox"], a["category_id"]) for a in record["annotations"]] == [
        ([10, 20, 30, 40], 3),
        ([50.5, 6, 7, 8], 9),
    ]
    assert record["ignore_regions"] == [[0, 0, 5, 5], [1, 2, 3, 4], [6, 7, 8, 9]]
    assert record["ignore_categories"] == [0, 11, 1]


def test_boxes_without_area_or_outside_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = GOOD + "10,20,0,40,1,4,0,0\n10,20,3,0,1,4,0,0\n100,0,5,5,1,4,0,0\n"  # x = 100 = width: outside
    with caplog.at_level(logging.WARNING):
        (record,) = load_visdrone(_folder(tmp_path, {"a": text}))
    assert len(record["annotations"]) == 1
    assert "dropped 2 boxes without area" in caplog.text
    assert "dropped 1 boxes outside the image" in caplog.text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,2,3,4,1,4,0", "has 7 fields instead of 8"),
        ("1,2,3,4,1,4,0,0,0", "has 9 fields"),
        ("1,2,x,4,1,4,0,0", "not a number"),
        ("1,2,nan,4,1,4,0,0", "not finite"),
        ("1,2,-3,4,1,4,0,0", "negative width or height"),
        ("1,2,3,4,1,12,0,0", "category 12"),
        ("1,2,3,4,1,3.5,0,0", "category 3.5"),
    ],
)
def test_a_malformed_line_is_reported_with_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(DatasetError, match=rf"a\.txt, line 2: .*{problem}"):
        load_visdrone(_folder(tmp_path, {"a": GOOD + line + "\n"}))


def test_a_missing_image_and_a_missing_txt_are_named(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"a": GOOD, "b": GOOD})
    (root / "images/b.jpg").unlink()
    with pytest.raises(DatasetError, match="No image for 1 of 2 .*first: 'b'"):
        load_visdrone(root)
    (root / "annotations/b.txt").unlink()
    (root / "annotations/a.txt").unlink()
    with pytest.raises(DatasetError, match="No txt file for 1 of 1 .*first: 'a'"):
        load_visdrone(root)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"a": GOOD})
    (root / "images/a.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"a\.jpg' cannot be read"):
        load_visdrone(root)


def test_a_missing_folder_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        load_visdrone(tmp_path / "nowhere")
    (tmp_path / "VisDrone2019-DET-val").mkdir()
    with pytest.raises(DatasetError, match="contains VisDrone2019-DET-val"):
        load_visdrone(tmp_path)
    with pytest.raises(DatasetError, match="holds no images"):
        load_visdrone(_folder(tmp_path / "empty", {}))


def test_a_split_file_selects_images_and_ignores_the_others(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"a": GOOD, "b.1": GOOD, "c": "broken"})
    split = tmp_path / "split.txt"
    split.write_text("b.1\na.jpg\n\n")
    assert [Path(r["file_name"]).stem for r in load_visdrone(root, split)] == ["a", "b.1"]
    split.write_text("a\nd\n")
    with pytest.raises(DatasetError, match="No image for 1 of 2 .*first: 'd'"):
        load_visdrone(root, split)
    split.write_text("a\na.jpg\n")
    with pytest.raises(DatasetError, match="more than once"):
        load_visdrone(root, split)
    with pytest.raises(DatasetError, match="does not exist"):
        load_visdrone(root, tmp_path / "none.txt")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_image_as_detectron2_reads_it(tmp_path: Path, orientation: int) -> None:
    root = _folder(tmp_path, {"a": "1,1,2,2,1,1,0,0"})
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (100, 80)).save(root / "images/a.jpg", exif=exif)
    (record,) = load_visdrone(root)
    assert (record["height"], record["width"]) == read_image(record["file_name"], "BGR").shape[:2]


def test_registration_is_lazy_and_a_name_is_taken_once(tmp_path: Path) -> None:
    name = "test_visdrone_lazy"
    register_visdrone(name, tmp_path / "later")
    try:
        with pytest.raises(DatasetError, match="already registered"):
            register_visdrone(name, tmp_path)
        _folder(tmp_path / "later", {"a": GOOD})
        assert len(DatasetCatalog.get(name)) == 1
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "visdrone"
        assert metadata.thing_classes == list(VISDRONE_CLASSES)
        assert metadata.thing_dataset_id_to_contiguous_id[10] == 9
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_three_official_splits_are_registered() -> None:
    for name, folder in [("train", "train"), ("val", "val"), ("test_dev", "test-dev")]:
        assert f"visdrone_{name}" in DatasetCatalog
        assert MetadataCatalog.get(f"visdrone_{name}").image_root.endswith(f"VisDrone2019-DET-{folder}/images")


def test_real_images_give_the_known_counts(real_data: Path) -> None:
    root = real_data / "visdrone"
    records = load_visdrone(root)
    assert len(records) == 89
    assert sum(len(r["annotations"]) for r in records) == 5051
    categories = [c for r in records for c in r["ignore_categories"]]
    assert (categories.count(0), categories.count(11), len(categories)) == (120, 17, 137)
    assert [a["category_id"] for r in records for a in r["annotations"]].count(3) == 2238  # cars
    train, val = (load_visdrone(root, root / f"split_{split}.txt") for split in ("train", "val"))
    assert (len(train), len(val)) == (67, 22)
    assert not {r["file_name"] for r in train} & {r["file_name"] for r in val}
