from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.export_models import tiny_config
from helpers.scripts import load_script

benchmark = load_script("benchmarks/export.py")


def test_it_sets_the_active_share_and_times_the_model_against_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture
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


def test_wrong_usage_gives_2(tmp_path: Path) -> None:
    assert benchmark.main(["--config", str(tmp_path / "none.yaml")]) == 2
