"""Weights & Biases: a stand-in for the package that remembers what it is told, and the package itself, offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import train_net
from d2_ext.config import add_d2_ext_config
from d2_ext.engine.step import StepTrainer
from d2_ext.engine.wandb_writer import ID_FILE, WandbWriter

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage

from helpers.small_runs import arguments, fresh_data


class FakeWandb(ModuleType):
    """Remembers the runs that are started and what each is told."""

    class Error(Exception):
        """As ``wandb.Error``."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__("wandb")
        self.runs: list[SimpleNamespace] = []
        self.refusal = refusal

    def init(self, **options: Any) -> SimpleNamespace:
        if self.refusal:
            raise self.Error(self.refusal)
        run = SimpleNamespace(id=options.get("id", f"run{len(self.runs)}"), url=None, options=options, rows=[], ends=[])
        run.define_metric = lambda *args, **kwargs: None
        run.log = run.rows.append
        run.finish = lambda exit_code: run.ends.append(exit_code)
        self.runs.append(run)
        return run

    @staticmethod
    def Image(image: np.ndarray) -> tuple[str, np.ndarray]:
        return "image", image

    @staticmethod
    def Histogram(np_histogram: tuple[np.ndarray, np.ndarray]) -> tuple[str, Any]:
        return "histogram", np_histogram


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def _cfg(folder: Path, **values: Any) -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.OUTPUT_DIR = str(folder)
    for key, value in {"ENABLED": True, **values}.items():
        cfg.WANDB[key] = value
    return cfg


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def _scalars(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as text, in which NaN equals NaN."""
    return [json.dumps({k: v for k, v in sorted(row.items()) if k != "masks"}) for row in rows]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fresh_data(tmp_path / "data")


def _train(data: Path, output: Path, *flags: str, **options: Any) -> int:
    keys = {"DATALOADER__NUM_WORKERS": 0, "SOLVER__MAX_ITER": 4, "TEST__EVAL_PERIOD": 2, "TEST__MASK_PERIOD": 2}
    return train_net.main(arguments(data, output, *flags, **{**keys, "WANDB__ENABLED": True, **options}))


def test_a_run_gets_the_rows_of_metrics_json_the_masks_and_the_config(fake: FakeWandb, data: Path) -> None:
    output = data.parent / "run"
    assert _train(data, output) == 0
    (run,) = fake.runs
    assert _scalars(run.rows) == _scalars(sorted(_lines(output), key=lambda line: line["iteration"]))
    with_masks = {row["iteration"]: row["masks"] for row in run.rows if "masks" in row}
    assert sorted(with_masks) == [1, 3]
    kind, image = with_masks[3]
    assert (kind, image.ndim, image.shape[2], image.dtype) == ("image", 3, 3, np.uint8)
    assert run.options["config"]["SOLVER"]["MAX_ITER"] == 4
    assert (run.options["project"], run.options["name"], run.options["mode"]) == ("d2_ext", "run", None)
    assert run.ends == [0]


def test_a_resumed_run_goes_on_in_the_same_place_and_a_new_one_does_not(fake: FakeWandb, data: Path) -> None:
    output = data.parent / "run"
    assert _train(data, output, SOLVER__MAX_ITER=2) == 0
    assert _train(data, output, "--resume") == 0
    assert _train(data, output) == 0
    first, resumed, new = fake.runs
    assert (resumed.options["id"], resumed.options["resume"]) == (first.id, "allow")
    assert [row["iteration"] for row in resumed.rows if "total_loss" in row] == [3]
    assert "id" not in new.options
    assert (output / ID_FILE).read_text().strip() == new.id


def test_evaluation_logs_nothing(fake: FakeWandb, data: Path) -> None:
    assert _train(data, data.parent / "run", "--eval-only") == 0
    assert fake.runs == []


def test_without_the_package_nothing_starts(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    output = data.parent / "run"
    assert _train(data, output) == 2
    message = capsys.readouterr().err
    assert "WANDB.ENABLED is True" in message
    assert "clone of d2_ext with: pip install -e '.[wandb]'" in message
    assert not output.exists()
    assert _train(data, output, WANDB__ENABLED=False) == 0


def test_a_refusal_of_the_package_is_explained_before_the_first_iteration(
    fake: FakeWandb, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.refusal = "api_key not configured (no-tty)."
    assert _train(data, data.parent / "run") == 2
    message = capsys.readouterr().err
    assert "api_key not configured (no-tty). Log in with `wandb login`, or set WANDB.MODE offline." in message
    assert not list((data.parent / "run").glob("*.pth"))


def test_an_error_marks_the_run_as_failed(fake: FakeWandb, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = {"loss": torch.tensor(float("nan"))}
    monkeypatch.setattr(StepTrainer, "_accumulate", lambda self, batch, is_last: nan)
    assert _train(data, data.parent / "run") == 1
    assert fake.runs[0].ends == [1]


def test_other_processes_than_the_main_one_log_nothing(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(WandbWriter.from_config(_cfg(tmp_path)), WandbWriter)
    assert WandbWriter.from_config(_cfg(tmp_path, ENABLED=False)) is None
    monkeypatch.setattr("d2_ext.engine.wandb_writer.comm.is_main_process", lambda: False)
    assert WandbWriter.from_config(_cfg(tmp_path)) is None


def test_histograms_of_more_bins_than_the_package_takes_keep_their_counts(fake: FakeWandb, tmp_path: Path) -> None:
    writer = WandbWriter(_cfg(tmp_path))
    writer.start(resumed=False)
    with EventStorage(7) as storage:
        storage.put_histogram("weights", torch.arange(1000.0), bins=1000)
        storage.put_image("half", torch.full((3, 2, 2), 0.5))
        writer.write()
    (row,) = fake.runs[0].rows
    kind, (counts, edges) = row["weights"]
    assert kind == "histogram"
    assert (len(counts), len(edges), counts.sum()) == (500, 501, 1000)
    assert (edges[0], edges[-1]) == (0, 999)
    assert row["iteration"] == 7
    assert (row["half"][1] == 128).all()


def test_the_package_itself_logs_and_resumes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for iteration in range(2):
        writer = WandbWriter(_cfg(tmp_path, MODE="offline"))
        writer.start(resumed=iteration > 0)
        with EventStorage(iteration) as storage:
            storage.put_scalar("loss", 0.5)
            storage.put_image("half", torch.full((3, 2, 2), 0.5))
            storage.put_histogram("weights", torch.arange(1000.0), bins=1000)
            writer.write()
        writer.close()
    number = (tmp_path / ID_FILE).read_text().strip()
    files = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files == [f"run-{number}.wandb"] * 2
    assert list((tmp_path / "wandb").rglob("half_*.png"))
