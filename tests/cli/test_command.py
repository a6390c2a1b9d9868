"""Numbers of options: those of the range are taken, all others named with what was expected."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from d2_ext.cli.command import command_parser, number_in, run_command
from d2_ext.files import replacing

import pytest


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), ("65535", 65535)])
def test_whole_numbers_of_the_range_are_taken(text: str, value: int) -> None:
    assert number_in(int, 0, 65535)(text) == value


@pytest.mark.parametrize("text", ["-1", "65536", "1.5", "x", "", "1e3", "9" * 400])
def test_other_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': expected a whole number from 0 to 65535"):
        number_in(int, 0, 65535)(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-0.1", "high"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': expected a number from 0"):
        number_in(float, 0)(text)


def test_own_modules_of_the_current_folder_are_imported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "own_detector_of_a_test.py").write_text("registered = True\n")
    (tmp_path / "own_broken_of_a_test.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    parser, seen = command_parser("", ""), []

    def work(args: argparse.Namespace) -> None:
        seen.append(sys.modules["own_detector_of_a_test"].registered)

    assert run_command(parser, work, ["--import", "own_detector_of_a_test"]) == 0
    assert seen == [True]
    assert run_command(parser, work, ["--import", "own_detector_of_a_tes"]) == 2
    assert "--import own_detector_of_a_tes: there is no such module" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        run_command(parser, work, ["--import", "own_broken_of_a_test"])


def test_sigterm_leaves_no_half_written_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(args: argparse.Namespace) -> None:
        with replacing(tmp_path / "a.onnx") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run_command(argparse.ArgumentParser(), work, [])
    assert stopped.value.code == 143
    assert capsys.readouterr().err == "Stopped by SIGTERM.\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before
