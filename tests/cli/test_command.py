"""Numbers of options: those of the range are taken, all others named with what was expected."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from d2_ext.cli.command import number_in, run_command
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
