"""``--dry-run``: everything once, and the cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import train_net
from d2_ext.runs.dry_run import Cost

import pytest
from detectron2.config import get_cfg

from helpers.small_runs import arguments, fresh_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fresh_data(tmp_path / "data")


def _run(data: Path, *flags: str, **options: Any) -> int:
    return train_net.main(arguments(data, data.parent / "run", *flags, DATALOADER__NUM_WORKERS=0, **options))


def test_it_says_the_cost_and_leaves_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(data, "--dry-run") == 0
    text = capsys.readouterr().out
    assert re.search(r"detector +RetinaNetCEASC, [\d.]+ M parameters, [\d.]+ G multiply-adds an image", text)
    assert re.search(r"training +about 0:00:\d\d for 12 iterations", text)
    assert re.search(r"evaluation +about 0:00:\d\d for 7 images, 2 x in the run", text)
    assert re.search(r"memory +[1-9]\d* MB", text)
    assert sorted(path.name for path in data.parent.iterdir()) == ["data"]


def test_what_would_stop_the_run_stops_it(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(data, "--dry-run", SOLVER__OPTIMIZER="Adam") == 2
    assert _run(data, "--dry-run", "--eval-only") == 2
    assert "--dry-run tries a training" in capsys.readouterr().err


def test_the_schedule_makes_the_cost() -> None:
    cost = Cost("FCOS", 3_000_000, None, 0.5, 0.1, 0.25, 40, 2**30)
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = 600, 100
    text = cost.text(cfg)
    assert "3.00 M parameters\n" in text
    assert "about 0:06:00 for 600 iterations" in text
    assert "about 0:00:10 for 40 images, 6 x in the run" in text
    assert "1024 MB at most" in text
