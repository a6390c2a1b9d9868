"""Accuracy over latency, from the files of two benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.scripts import load_script

tool = load_script("dev/plot_peers.py")
TIMES = [{"model": "yolo26n", "ms": 120.0}, {"model": "fcos_sparse_s", "ms": 150.0}, {"model": "other", "ms": 1.0}]
TRAINED = [
    {"training": "yolo26n, 44 minutes", "model": "yolo26n", "data": "some", "AP": 10.0},
    {"training": "ours", "recipe": "configs/HIT-UAV/fcos_sparse_V22_lite_FPN64.yaml", "data": "some", "AP": 24.0},
    {"training": "not timed", "model": "yolo11n", "data": "some", "AP": 11.0},
    {"training": "elsewhere", "model": "yolo26n", "data": "another", "AP": 12.0},
]


def _files(folder: Path, times: object) -> list[str]:
    for name, rows in (("latency", times), ("accuracy", TRAINED)):
        (folder / f"{name}.json").write_text(json.dumps({"rows": rows}))
    given = [word for name in ("latency", "accuracy") for word in (f"--{name}", str(folder / f"{name}.json"))]
    return [*given, "--data", "some", "--output", str(folder / "plot.png")]


def test_trainings_of_timed_detectors_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(_files(tmp_path, TIMES)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "   120 ms   10.0 AP  yolo26n, 44 minutes",
        "   150 ms   24.0 AP  ours",
    ]
    assert len(lines) == 3
    assert Image.open(tmp_path / "plot.png").size == (960, 480)


def test_files_without_a_common_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(_files(tmp_path, TIMES[2:])) == 2
    assert "no model in common" in capsys.readouterr().err
    assert not (tmp_path / "plot.png").exists()
