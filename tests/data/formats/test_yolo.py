"""YOLO folders in their usual shapes, and every way to get a line wrong."""

from __future__ import annotations

from pathlib import Path

from d2_ext.data.formats import recognize
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

import pytest

from helpers.own_folders import BOX, SPLITS, YOLO_LINE, image, images, yolo_folder


def _one(root: Path, text: str, yaml: str | None = "names: [cat, dog]\n") -> Path:
    yolo_folder(root, {"train": ["a"]}, yaml=yaml)
    (root / "labels/train/a.txt").write_text(text)
    return root


def test_folders_of_splits_with_images_and_labels_inside_are_read(tmp_path: Path) -> None:
    for split in ("train", "valid"):  # Roboflow's shape, whose paths are one level off
        images(tmp_path / split / "images", "ab")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels/a.txt").write_text(YOLO_LINE)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    data = recognize(tmp_path)
    assert {split.name: split.num_images for split in data.splits} == {"train": 2, "val": 2}
    first, second = data.splits[0].read(Problems())
    assert first["annotations"][0]["bbox"] == pytest.approx(BOX)
    assert second["annotations"] == [], "an image without labels shows nothing"


def test_labels_beside_images_with_lists_are_read(tmp_path: Path) -> None:
    images(tmp_path / "obj", "abc")
    for stem in "abc":
        (tmp_path / f"obj/{stem}.txt").write_text(YOLO_LINE)
    (tmp_path / "train.txt").write_text("obj/a.jpg\nobj/b.jpg\n")
    (tmp_path / "val.txt").write_text("./obj/c.jpg\n")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    data = recognize(tmp_path)
    assert data.classes == ("cat", "dog")
    assert {split.name: split.num_images for split in data.splits} == {"train": 2, "val": 1}
    (tmp_path / "val.txt").write_text("obj/c.jpg\nobj/gone.jpg\n")
    assert "val: 1 of 2 images are missing and left out, first: obj/gone.jpg" in recognize(tmp_path).notes


def test_without_names_the_classes_are_numbered_and_said_so(tmp_path: Path) -> None:
    data = recognize(yolo_folder(tmp_path, {"": ["a", "b"]}, yaml=None))
    assert data.classes == ("class_0", "class_1")
    assert [split.name for split in data.splits] == ["all"]
    assert any("no file names the classes" in note for note in data.notes)


@pytest.mark.parametrize("number", ["99999999999", "\u00b2", "1" * 5000])
def test_no_class_number_of_a_label_makes_endless_classes(tmp_path: Path, number: str) -> None:
    folder = yolo_folder(tmp_path, {"": ["a", "b"]}, yaml=None)
    label = next(folder.rglob("a.txt"))
    label.write_text(f"0 0.5 0.5 0.1 0.1\n{number} 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    data = recognize(folder)
    assert len(data.classes) <= 2
    with pytest.raises(DatasetError, match=r"a\.txt, line 2: "):
        data.splits[0].read(Problems())


def test_polygons_become_masks_and_their_boxes(tmp_path: Path) -> None:
    (record,) = recognize(_one(tmp_path, "1 0.1 0.25 0.4 0.25 0.4 0.75\n")).splits[0].read(Problems())
    (annotation,) = record["annotations"]
    assert annotation["bbox"] == pytest.approx(BOX)
    assert annotation["segmentation"][0] == pytest.approx([10, 20, 40, 20, 40, 60])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1 0.25 0.5 0.3", "has 4 fields instead of 5"),
        ("1 0.25 0.5 0.3 0.5 0.9", "a sixth is a detector's score"),
        ("1 0.25 x 0.3 0.5", "not a number"),
        ("1 0.25 nan 0.3 0.5", "not finite"),
        ("1.5 0.25 0.5 0.3 0.5", "has class 1.5"),
        ("1 25 40 30 40", "contains 25, which is no share"),
        ("2 0.25 0.5 0.3 0.5", r"class 2, but there are 2 \(0 to 1\)"),
    ],
)
def test_a_malformed_line_names_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    data = recognize(_one(tmp_path, YOLO_LINE + "\n" + line + "\n"))
    with pytest.raises(DatasetError, match=rf"a\.txt, line 3: .*{problem}"):
        data.splits[0].read(Problems())


def test_all_errors_are_collected_for_a_checker(tmp_path: Path) -> None:
    problems = Problems(collect=True)
    data = recognize(_one(tmp_path, f"5 0.1 0.1 0.1 0.1\nx\n{YOLO_LINE}1 0.5 0.5 0 0.1\n"))
    (record,) = data.splits[0].read(problems)
    assert len(record["annotations"]) == 1
    assert [(p.severity, p.kind) for p in problems.found] == [
        ("error", "unknown class"),
        ("error", "malformed line"),
        ("warning", "dropped boxes without area"),
    ]


def test_what_no_split_uses_is_counted(tmp_path: Path) -> None:
    yolo_folder(tmp_path, SPLITS)
    image(tmp_path / "images/extra/z.jpg")
    (tmp_path / "labels/train/lonely.txt").write_text(YOLO_LINE)
    notes = "; ".join(recognize(tmp_path).notes)
    assert "images/extra: 1 images belong to no split" in notes
    assert "labels/train: 1 label files have no image, first: lonely.txt" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat]\ntrain: images/nowhere\n", r"data\.yaml', 'train': nothing at"),
        ("names: 3\ntrain: images/train\n", "'names' is 3"),
        ("names: !!python/object/apply:os.system ['true']\ntrain: a\n", "not a safe, well-formed YAML"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, text: str, message: str) -> None:
    yolo_folder(tmp_path, {"train": ["a"]})
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetError, match=message):
        recognize(tmp_path)
