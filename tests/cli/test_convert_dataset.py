"""The converter: what it writes reads back as the same data, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from d2_ext.cli import convert_dataset as tool
from d2_ext.data.formats import FORMATS, recognize
from d2_ext.data.problems import Problems

import pytest

from helpers.own_folders import folder_of, yolo_folder


def _content(folder: Path) -> dict[str, list]:
    """Split -> per image its name, boxes with class names, and ignore regions."""
    data = recognize(folder)
    return {
        split.name: sorted(
            (
                Path(record["file_name"]).name,
                [(data.classes[a["category_id"]], [round(v, 2) for v in a["bbox"]]) for a in record["annotations"]],
                record.get("ignore_regions", []),
            )
            for record in split.read(Problems())
        )
        for split in data.splits
    }


@pytest.mark.parametrize("data_format", FORMATS)
def test_the_conversion_reads_back_as_the_same_data(data_format: str, tmp_path: Path) -> None:
    source = folder_of(data_format, tmp_path / "source")
    output = tmp_path / "coco"
    arguments = ["--input", str(source), "--output", str(output), "--regions", "class"]
    assert tool.main(arguments) == 0
    assert recognize(output).format == "coco"
    assert _content(output) == _content(source)
    assert all(path.is_symlink() for path in output.rglob("*.jpg"))


def test_regions_become_crowds_that_coco_ignores(tmp_path: Path) -> None:
    source = folder_of("visdrone", tmp_path / "source")
    assert tool.main(["--input", str(source), "--output", str(tmp_path / "out"), "--images", "copy"]) == 0
    content = json.loads((tmp_path / "out/annotations/val.json").read_text())
    crowds = [row for row in content["annotations"] if row["iscrowd"]]
    assert sorted(row["category_id"] for row in crowds) == list(range(1, 11))
    assert {tuple(row["bbox"]) for row in crowds} == {(0, 0, 8, 8)}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*.jpg"))


def test_one_split_is_held_out_and_images_can_stay(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "y", {"": [f"p{i}" for i in range(10)]})
    output = tmp_path / "out"
    arguments = ["--input", str(source), "--output", str(output), "--images", "leave", "--hold-out", "0.3"]
    assert tool.main(arguments) == 0
    jsons = {path.stem: json.loads(path.read_text()) for path in (output / "annotations").iterdir()}
    assert {name: len(content["images"]) for name, content in jsons.items()} == {"train": 7, "val": 3}
    assert all((source / image["file_name"]).is_file() for image in jsons["val"]["images"])
    assert not (output / "images").exists()


def test_an_output_is_replaced_only_when_asked_and_only_its_own(tmp_path: Path) -> None:
    source, output = folder_of("voc", tmp_path / "v"), tmp_path / "out"
    arguments = ["--input", str(source), "--output", str(output)]
    assert tool.main(arguments) == 0
    assert tool.main(arguments) == 2
    assert tool.main([*arguments, "--overwrite"]) == 0
    (tmp_path / "precious").mkdir()
    assert tool.main(["--input", str(source), "--output", str(tmp_path / "precious"), "--overwrite"]) == 2
    assert tool.main(["--input", str(source), "--output", str(source / "inside")]) == 2
    assert tool.main(["--input", str(tmp_path / "no"), "--output", str(output)]) == 2


def test_a_broken_folder_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = yolo_folder(tmp_path / "y", {"train": ["a"], "val": ["b"]})
    (source / "labels/val/b.txt").write_text("1 2 3\n")
    assert tool.main(["--input", str(source), "--output", str(tmp_path / "out")]) == 1
    assert "b.txt, line 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


def test_the_help_has_three_examples() -> None:
    assert tool.argument_parser().format_help().count("python tools/convert_dataset.py") == 3


def test_an_earlier_output_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = yolo_folder(tmp_path / "y", {"train": ["a"], "val": ["b"]}), tmp_path / "out"
    arguments = ["--input", str(source), "--output", str(output), "--overwrite"]
    assert tool.main(arguments) == 0
    (output / "mine.txt").write_text("kept")
    replace = os.replace

    def no_new(old: Path, new: Path) -> None:
        if Path(old).name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_new)
        assert tool.main(arguments) == 1
    assert f"'{output}' cannot be written: [Errno 5]" in capsys.readouterr().err
    assert (output / "mine.txt").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "y"]
