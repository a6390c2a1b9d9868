"""``train_net.py --data``: train, evaluate again from the saved config, resume, and in two processes."""

from __future__ import annotations

import json
from pathlib import Path

import train_net

import pytest
import torch

from helpers.forked import start_processes
from helpers.own_folders import uavdt_folder, yolo_folder
from helpers.scripts import ROOT

RECIPE = str(ROOT / "configs/quickstart/fcos_R18_synthetic.yaml")
SMALL = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "1"),
    *("DATALOADER.NUM_WORKERS", "0", "TEST.NUM_PICTURES", "0", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return yolo_folder(tmp_path_factory.mktemp("own") / "pets", {"": [f"p{i}" for i in range(6)]})


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    output = folder.parent / "run"
    assert train_net.main(["--config-file", RECIPE, "--data", str(folder), *SMALL, "OUTPUT_DIR", str(output)]) == 0
    return output


def _results(run: Path) -> list[dict]:
    return json.loads((run / "inference/coco_instances_results.json").read_text())


def test_a_folder_is_trained_and_evaluated_without_python(trained: Path) -> None:
    log = (trained / "log.txt").read_text()
    assert "format yolo, 2 classes: cat, dog" in log
    assert "1 of its 6 images are held out" in log
    assert "bbox/AP" in (trained / "metrics.json").read_text()


def test_its_config_evaluates_the_same_without_the_flag(trained: Path, tmp_path: Path) -> None:
    weights = str(trained / "model_final.pth")
    saved = ["--config-file", str(trained / "config.yaml"), "--eval-only", "MODEL.WEIGHTS", weights]
    assert train_net.main([*saved, "OUTPUT_DIR", str(tmp_path / "again")]) == 0
    assert _results(tmp_path / "again") == _results(trained)


def test_it_resumes(folder: Path, trained: Path) -> None:
    arguments = ["--config-file", RECIPE, "--data", str(folder), "--resume", *SMALL]
    assert train_net.main([*arguments, "OUTPUT_DIR", str(trained), "SOLVER.MAX_ITER", "3"]) == 0
    assert "Starting training from iteration 2" in (trained / "log.txt").read_text()


def test_two_processes_know_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.multiprocessing, "start_processes", start_processes)
    data = uavdt_folder(tmp_path / "uav", ["M0101", "M0203"])
    arguments = ["--config-file", RECIPE, "--data", str(data), "--num-gpus", "2", "--dist-url", "auto", *SMALL]
    assert train_net.main([*arguments, "OUTPUT_DIR", str(tmp_path / "run")]) == 0
    assert "own_uav_test" in (tmp_path / "run/log.txt").read_text()
    assert (tmp_path / "run/log.txt.rank1").is_file()
    assert (tmp_path / "run/model_final.pth").is_file()


def test_a_broken_folder_ends_with_one_line_and_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    assert train_net.main(["--config-file", RECIPE, "--data", str(tmp_path)]) == 1
    assert "is in no known format; it contains notes.txt" in capsys.readouterr().err
    assert train_net.main(["--config-file", RECIPE, "--data", str(tmp_path / "no")]) == 2
