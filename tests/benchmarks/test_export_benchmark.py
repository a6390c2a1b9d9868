from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from export_models import tiny_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; beside it lies what it imports."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_export", BENCHMARKS / "export.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_it_sets_the_active_share_and_times_the_model_against_itself(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_config("fcos_sparse").dump())
    sides = ["eager", "eager-folded"]
    options = ["--config", str(tmp_path / "tiny.yaml"), "--sides", *sides, "--active", "25", "--size", "96", "128"]
    assert benchmark.main([*options, "--rounds", "1", "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert [row["side"] for row in content["rows"]] == sides
    assert content["rows"][0]["ratio"] == 1
    assert content["rows"][1]["unmatched"] == 0
    assert "eager-folded" in capsys.readouterr().out


def test_wrong_usage_gives_2(benchmark: ModuleType, tmp_path: Path) -> None:
    assert benchmark.main(["--config", str(tmp_path / "none.yaml")]) == 2
