"""What is checked of a run before it leaves a trace, beside the table of bad input."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError
from d2_ext.runs import preflight
from d2_ext.runs.preflight import check_output_dir

import pytest
from faults.runs import SMALL

from helpers.scripts import ROOT


@pytest.mark.parametrize(
    ("output_dir", "says"),
    [
        ("run\0", "null byte"),
        ("r" * 300, "File name too long"),
        ("/dev/null", "/dev/null is no folder"),
        ("/dev/null/run", "/dev/null is no folder"),
        ("file/deep/run", "file is no folder"),
        ("loop/run", "Too many levels of symbolic links"),
        ("dangling/run", "dangling is a link to nothing"),
        pytest.param(
            "locked/run",
            "locked cannot be written",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_dir: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nothing")
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match=rf"OUTPUT_DIR is .*, but .*{says}.*\. Name a folder"):
        check_output_dir(output_dir)


@pytest.mark.parametrize("output_dir", ["", "run", "a/b/c", "s3://bucket/run", "."])
def test_a_folder_that_can_be_made_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_dir: str
) -> None:
    monkeypatch.chdir(tmp_path)
    check_output_dir(output_dir)
    assert not list(tmp_path.iterdir())


def test_what_works_but_was_hardly_meant_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preflight, "check_dataset", lambda cfg, name, trains: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    changes = ["SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "9", "OUTPUT_DIR", str(tmp_path / "run")]
    cfg = load_config(ROOT / "configs/quickstart/fcos_R18_synthetic.yaml", [*SMALL, *changes])
    with caplog.at_level(logging.WARNING, "d2_ext"):
        preflight.check_run(cfg)
    assert "SOLVER.IMS_PER_BATCH is 4, but DATASETS.TRAIN has 3 images" in caplog.text
    assert "DATALOADER.NUM_WORKERS is 9, which makes 9 processes on 2 cores" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "d2_ext"):
        preflight.check_run(load_config(ROOT / "configs/quickstart/fcos_R18_synthetic.yaml", [*SMALL]))
    assert not caplog.records
