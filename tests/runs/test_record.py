"""What a run folder says about its run, and the switch for deterministic algorithms."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from d2_ext.engine.determinism import WORKSPACE, set_deterministic
from d2_ext.runs.record import record_start, resume_command

import pytest
import torch


def test_each_start_gets_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", "SEED", "5"])
    record_start(str(tmp_path), seed=5, first_iteration=0)
    record_start(str(tmp_path), seed=5, first_iteration=8)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["first_iteration"] for start in starts] == [0, 8]
    assert starts[0]["command"][1:] == ["train_net.py", "SEED", "5"]
    assert starts[0]["environment"]["torch"] == torch.__version__
    assert starts[0]["environment"]["processes"] == 1


def test_a_broken_record_is_started_anew(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"starts": ')
    record_start(str(tmp_path), seed=5, first_iteration=0)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_the_command_to_go_on_has_the_flag_once(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", *flags, "OUTPUT_DIR", "a folder"])
    assert resume_command().endswith("train_net.py --resume OUTPUT_DIR 'a folder'")


@pytest.mark.parametrize(("script", "start"), [("/venv/bin/d2_ext", "d2_ext"), ("/d2_ext/__main__.py", "-m d2_ext")])
def test_of_the_one_program_the_flag_stands_behind_the_command(
    script: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "train", "--seeds", "1", "2", "SEED", "1"])
    assert resume_command().endswith(f"{start} train --resume --seeds 1 2 SEED 1")


@pytest.fixture
def _algorithms_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(WORKSPACE, raising=False)
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    os.environ.pop(WORKSPACE, None)


@pytest.mark.usefixtures("_algorithms_as_before")
def test_the_switch_allows_deterministic_algorithms_only() -> None:
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ[WORKSPACE] == ":4096:8"
