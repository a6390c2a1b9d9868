"""The environment report for bug reports."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import d2_ext
from d2_ext.utils import env
from d2_ext.utils.env import commit_of

import pytest
import torch


def _git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_the_commit_is_named_with_its_changes(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    (tmp_path / "file").write_text("1")
    for arguments in (["init"], ["add", "file"], ["commit", "-m", "first"]):
        _git(tmp_path, *arguments)
    commit = commit_of(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == f"{commit}+changes"


def test_the_report_names_versions_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("D2_EXT_SOMETHING", "1")
    runpy.run_path(env.__file__, run_name="__main__")
    text = capsys.readouterr().out
    assert re.search(rf"^d2_ext +{re.escape(d2_ext.__version__)} @", text, re.MULTILINE)
    assert re.search(rf"^PyTorch +{re.escape(torch.__version__)} @", text, re.MULTILINE)
    assert "D2_EXT_SOMETHING=1" in text
    monkeypatch.setattr(env, "OPTIONAL", ("tensorboard", "no-such-package"))
    text = env.environment_report()
    assert re.search(r"^no-such-package +not installed", text, re.MULTILINE)
    assert re.search(r"^tensorboard +[\d.]+", text, re.MULTILINE)
