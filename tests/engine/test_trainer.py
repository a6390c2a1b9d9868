"""The trainer from Python, without the command line around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.config.load import load_config
from d2_ext.engine import Trainer
from d2_ext.report.run_folder import read_run

from helpers.scripts import QUICKSTART
from helpers.small_runs import OPTIONS, fresh_data


def test_it_makes_the_run_folder_and_leaves_its_config(tmp_path: Path) -> None:
    fresh_data(tmp_path / "data")
    options: dict[str, Any] = {**OPTIONS, "SOLVER.MAX_ITER": 1, "DATASETS.TEST": "()", "DATALOADER.NUM_WORKERS": 0}
    options |= {"OUTPUT_DIR": tmp_path / "deep/run", "TEST.BEST.SAVE": False}
    cfg = load_config(QUICKSTART, [str(word) for pair in options.items() for word in pair])
    (tmp_path / "deep/run").mkdir(parents=True)
    (tmp_path / "deep/run/config.yaml").write_text("SEED: 99\n")  # of another run
    Trainer(cfg).train()
    assert read_run(tmp_path / "deep/run").setting("SEED") == 7
    assert (tmp_path / "deep/run/config.yaml").read_text() == cfg.dump()
