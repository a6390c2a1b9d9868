from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def backbones(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; beside it lies what it imports."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("backbones")


def test_it_measures_and_writes_what_it_says(
    backbones: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "backbones.json"
    models = ["R-18", "V-19-slim-dw-eSE", "MogaNet-xtiny"]
    assert (
        backbones.main(["--models", *models, "--size", "64", "64", "--repeats", "1", "--train", "--json", str(path)])
        == 0
    )
    content = json.loads(path.read_text())
    assert {"machine", "date", "commit"} < set(content)
    assert [row["backbone"] for row in content["rows"]] == models
    for row in content["rows"]:
        assert row["size"] == [64, 64]
        assert row["fold_error"] <= 1e-5
        assert row["fold_speedup"] == pytest.approx(row["latency_ms"] / row["folded_ms"])
        assert row["ratio_r50"] == pytest.approx(row["latency_ms"] / row["r50_ms"])
        assert row["peak_mb"] > 0
        assert row["train_peak_mb"] > row["peak_mb"]
        if row["backbone"] != "R-18":
            assert row["recompute_peak_mb"] < row["train_peak_mb"]
    assert "V-19-slim-dw-eSE" in capsys.readouterr().out


def test_all_backbones_and_the_resnets_are_known(backbones: ModuleType) -> None:
    assert len(backbones.known_models()) == 3 + 10 + 1 + 6
    with pytest.raises(SystemExit):
        backbones.main(["--models", "V-40"])
