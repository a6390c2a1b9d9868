"""The checker: every kind of mistake is found, named and counted; the exit code follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from d2_ext.cli import check_dataset as tool
from d2_ext.data.formats import FORMATS

import pytest
from PIL import Image

from helpers.own_folders import BOX, SPLITS, coco_content, folder_of, image, images, write_json, yolo_folder


def _found(folder: Path, *flags: str) -> tuple[int, list[tuple[str, str]], dict[str, Any]]:
    """Exit code, (severity, kind) of all findings, and the whole json."""
    report = folder.parent / "report.json"
    code = tool.main([str(folder), "--json", str(report), "--quiet", *flags])
    content = json.loads(report.read_text())
    kinds = [(p["severity"], p["kind"]) for split in content["splits"].values() for p in split["found"]]
    return code, kinds, content


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (80, 100)).save(path, exif=exif)


def _one_image(root: Path, boxes: list[list[float]]) -> Path:
    images(root / "images", "a")
    write_json(root / "a.json", coco_content("a", boxes=boxes))
    return root


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_sound_folder_has_no_errors(data_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = tool.main([str(folder_of(data_format, tmp_path / "d")), "--quiet", "--headers-only"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert f"format {data_format}" in printed
    assert "0 errors, 0 warnings" in printed


def test_counts_classes_and_sizes_are_reported(tmp_path: Path) -> None:
    folder = _one_image(tmp_path / "d", [BOX, [0, 0, 99, 79], [5, 5, 10, 10]])  # sides 34.6, 88.4 and 10 px
    code, kinds, content = _found(folder)
    assert (code, kinds) == (0, [])
    split = content["splits"]["all"]
    assert split["objects_by_class"] == {"cat": 0, "dog": 3}
    assert split["objects_by_size"] == {"small": 1, "medium": 2, "large": 0}


def test_mistakes_in_boxes_are_warnings(tmp_path: Path) -> None:
    boxes = [BOX, BOX, [90, 70, 30, 30], [200, 0, 5, 5], [1, 1, 0, 5], [3, 3, 0.5, 9]]
    folder = _one_image(tmp_path / "d", boxes)
    code, kinds, _ = _found(folder)
    assert code == 0
    assert sorted(kind for _, kind in kinds) == [
        "box below 1 px",
        "box partly outside",
        "dropped boxes outside the image",
        "dropped boxes without area",
        "duplicated box",
    ]
    assert {severity for severity, _ in kinds} == {"warning"}
    assert _found(folder, "--strict")[0] == 1


def test_unknown_classes_and_malformed_lines_are_all_listed(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "d", SPLITS)
    (folder / "labels/train/a.txt").write_text("9 0.5 0.5 0.1 0.1\nnonsense\n")
    code, kinds, content = _found(folder, "--headers-only")
    assert code == 1
    assert kinds == [("error", "unknown class"), ("error", "malformed line")]
    assert content["splits"]["train"]["found"][1]["where"].endswith("a.txt, line 2")


def test_broken_images_wrong_sizes_and_rotation_are_found(tmp_path: Path) -> None:
    root = tmp_path / "d"
    images(root / "images", "abcd")
    write_json(root / "a.json", coco_content("abcd"))
    whole = (root / "images/a.jpg").read_bytes()
    (root / "images/a.jpg").write_bytes(whole[: len(whole) // 2])  # the header is good, the rest is gone
    image(root / "images/b.jpg", size=(50, 40))
    _rotated(root / "images/c.jpg")  # 80x100 in the file, 100x80 turned, as the json says
    code, kinds, content = _found(root)
    assert code == 1
    assert sorted(kinds) == [
        ("error", "size mismatch"),
        ("error", "unreadable image"),
        ("warning", "EXIF rotation"),
    ]
    texts = [p["text"] for p in content["splits"]["all"]["found"]]
    assert any("is 50x40, the annotations say 100x80" in text for text in texts)


def test_annotations_of_the_unturned_image_are_told_as_such(tmp_path: Path) -> None:
    content = coco_content("a")
    content["images"][0] |= {"width": 80, "height": 100}
    (tmp_path / "d/images").mkdir(parents=True)
    _rotated(tmp_path / "d/images/a.jpg")
    write_json(tmp_path / "d/a.json", content)
    _, _, report = _found(tmp_path / "d")
    assert "before its EXIF orientation turns it" in report["splits"]["all"]["found"][0]["text"]


def test_the_same_image_in_train_and_val_is_an_error(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "d", {"train": ["a", "b"], "val": ["c"]})
    shutil.copy(folder / "images/train/b.jpg", folder / "images/train/a.jpg")
    shutil.copy(folder / "images/train/b.jpg", folder / "images/val/c.jpg")
    code, kinds, _ = _found(folder)
    assert code == 1
    assert kinds == [("warning", "duplicated image"), ("error", "image in two splits")]


def test_the_histograms_are_an_image(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    assert tool.main([str(folder_of("voc", tmp_path / "d")), "--chart", str(chart), "--quiet", "--headers-only"]) == 0
    with Image.open(chart) as image:
        assert image.size[0] > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chart.png", "d"]


def test_wrong_usage_gives_2_and_an_unknown_folder_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(tmp_path / "no")]) == 2
    assert tool.main([str(tmp_path), "--chart", "chart.doc"]) == 2
    assert tool.main([str(tmp_path)]) == 1
    assert "holds no files" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        tool.main([str(tmp_path), "--jsn", "x"])
    assert stop.value.code == 2


def test_the_help_has_four_examples() -> None:
    assert tool.argument_parser().format_help().count("python tools/check_dataset.py") == 4
