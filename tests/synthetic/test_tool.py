"""tools/make_demo_data.py: folders of any size, the contact sheet, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import d2_ext  # noqa: F401
from d2_ext.cli import make_demo_data as tool

import cv2
import pytest

SMALL = ["--num-train", "2", "--num-val", "1", "--size", "96x80", "--quiet"]


def test_it_writes_two_splits_and_says_when_they_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--output", str(tmp_path / "out"), *SMALL]) == 0
    assert sorted(p.name for p in (tmp_path / "out" / "train" / "images").iterdir()) == ["000000.jpg", "000001.jpg"]
    assert (tmp_path / "out" / "val" / "val.json").is_file()
    assert "2 images drawn into" in capsys.readouterr().out
    assert tool.main(["--output", str(tmp_path / "out"), *SMALL]) == 0
    assert "were already in" in capsys.readouterr().out


def test_it_replaces_its_own_data_only_when_told_and_nobody_elses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--output", str(tmp_path), *SMALL]) == 0
    assert tool.main(["--output", str(tmp_path), *SMALL, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tool.main(["--output", str(tmp_path), *SMALL, "--seed", "1", "--overwrite"]) == 0
    mine = tmp_path / "mine" / "train"
    mine.mkdir(parents=True)
    assert tool.main(["--output", str(tmp_path / "mine"), *SMALL, "--overwrite"]) == 2
    assert mine.is_dir()


def test_the_contact_sheet_is_an_image_below_200_kb(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.jpg"
    tool.write_contact_sheet(sheet, 0, columns=2, rows=1)
    assert sheet.stat().st_size < 200_000
    assert cv2.imread(str(sheet)).shape == (324 + 26, 648, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Nothing to do"),
        (["--output", "x", "--num-train", "-1"], "num_train=-1"),
        (["--contact-sheet", "x.gif"], "no image type '.gif'"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_to_write(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(arguments) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--output", "x", "--size", "big"], "384x256"),
        (["--output", "x", "--num-trian", "3"], "Did you mean '--num-train'"),
    ],
)
def test_options_that_cannot_be_parsed_say_what_to_write(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.main(arguments)
    assert text in capsys.readouterr().err


def test_an_output_that_cannot_be_written_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tool.main(["--output", str(tmp_path / "file"), *SMALL]) == 1


def test_help_has_three_examples() -> None:
    assert tool.argument_parser().format_help().count("python tools/make_demo_data.py") == 3
