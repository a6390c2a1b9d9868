"""The benchmarks of FCOS, DeFCN and POTO run at a tiny size and write their rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import d2_ext

import pytest

ROOT = Path(d2_ext.__file__).resolve().parents[1]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240)


def test_poto_is_the_same_as_scipy_and_faster(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    result = run("poto.py", "--boxes", "40", "--radius", "1.5", "--repeats", "1", "--json", str(tmp_path / "rows.json"))
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "rows.json").read_text())
    assert {"machine", "date", "commit", "rows"} == content.keys()
    for row in content["rows"]:
        assert row["locations"] == 22400
        assert row["same"]
        assert row["ratio"] > 2  # 20 and more on a quiet machine


def test_dense_detectors_are_compared_side_by_side(tmp_path: Path) -> None:
    small = ("--size", "64", "96", "--batch", "2", "--boxes", "3", "--channels", "64", "--repeats", "1")
    result = run("dense_detectors.py", *small, "--device", "cpu", "--json", str(tmp_path / "rows.json"))
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["FCOS", "DeFCN, POTO", "DeFCN, POTO + 3DMF"]
    assert all(row["train_ratio"] > 0 for row in rows)
