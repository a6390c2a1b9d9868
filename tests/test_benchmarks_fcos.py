"""The benchmarks of FCOS, DeFCN and POTO run at a tiny size and write their rows."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from helpers.scripts import load_script


def test_poto_is_the_same_as_scipy_and_faster(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    arguments = ["--boxes", "40", "--radius", "1.5", "--repeats", "1", "--json", str(tmp_path / "rows.json")]
    assert load_script("benchmarks/poto.py").main(arguments) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert {"machine", "date", "commit", "rows"} == content.keys()
    for row in content["rows"]:
        assert row["locations"] == 22400
        assert row["same"]
        assert row["ratio"] > 2  # 20 and more on a quiet machine


def test_dense_detectors_are_compared_side_by_side(tmp_path: Path, detectron2_kind: str) -> None:
    small = ["--size", "64", "96", "--batch", "2", "--boxes", "3", "--channels", "64", "--repeats", "1"]
    arguments = [*small, "--device", "cpu", "--json", str(tmp_path / "rows.json")]
    assert load_script("benchmarks/dense_detectors.py").main(arguments) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    models = ["FCOS", "DeFCN, POTO", "DeFCN, POTO + 3DMF"][detectron2_kind == "standin" :]  # its own FCOS is missing
    assert [(row["order"], row["model"]) for row in rows] == [*product(["default", "channels_last"], models)]
    assert all(row["train_ratio"] > 0 for row in rows)
