"""The benchmark of CEASC runs, and writes what its readers expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.scripts import load_script

benchmark_script = load_script("benchmarks/ceasc.py")
TINY = ["--size", "64", "96", "--rounds", "1", "--opts", "MODEL.FPN.OUT_CHANNELS", "32"]


def test_it_measures_both_sides_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "deep" / "out.json"
    assert benchmark_script.main(["--active", "10", "50", "--json", str(file), *TINY]) == 0
    content = json.loads(file.read_text())
    assert content.keys() == {"machine", "date", "commit", "rows"}
    few, many = content["rows"]
    # 8 x 12 + 4 x 6 + 2 x 3 + 1 x 2 + 1 x 1 = 129 positions; 10 + 2 + 1 + 0 + 0 and 48 + 12 + 3 + 1 + 0 are active
    assert few["active"] == pytest.approx(13 / 129, abs=1e-4)
    assert many["active"] == pytest.approx(64 / 129, abs=1e-4)
    assert few["head_bound"] > many["head_bound"] > 1
    assert few["model_bound"] > many["model_bound"] > 1
    for row in content["rows"]:
        assert row["max_abs_diff"] < 1e-4
        assert row["head_ratio"] == pytest.approx(row["head_dense_s"] / row["head_sparse_s"])
        assert row["model_ratio"] == pytest.approx(row["model_dense_s"] / row["model_sparse_s"])
    assert "10 %" in capsys.readouterr().out
    narrow = [*TINY[:-1], "16", "MODEL.CEASC.NORM_GROUPS", "8"]
    assert benchmark_script.main(["--active", "10", "--head-only", "--json", str(file), "--extend", *narrow]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert rows[:2] == [few, many]
    assert [(row["channels"], row["layers"], row["size"]) for row in rows] == [
        (32, 4, [64, 96]),
        (32, 4, [64, 96]),
        (16, 4, [64, 96]),
    ]
    file.write_text(json.dumps({**content, "machine": "another"}))
    assert benchmark_script.main(["--active", "10", "--json", str(file), "--extend", *TINY]) == 2


def test_bounds_of_the_paper_model_are_those_of_its_arithmetic() -> None:
    # one level is enough, because the bound of the head does not depend on the sizes
    args = benchmark_script.argument_parser().parse_args(["--size", "64", "64", "--head-only"])
    sides = benchmark_script.build_sides(args)
    masks = benchmark_script.random_masks([torch.zeros(1, 1, 100, 100)], 0.1)
    sides = benchmark_script.Sides(sides.dense, sides.sparse, sides.inputs, [torch.zeros(1, 1, 100, 100)], [])
    _, head, sparse = benchmark_script.multiply_adds(sides, masks)
    assert head / sparse == pytest.approx(7.85, abs=0.01)


def test_weights_without_an_image_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert benchmark_script.main(["--weights", "model.pth"]) == 2
    assert "Add --image FILE" in capsys.readouterr().err
