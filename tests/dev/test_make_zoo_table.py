from __future__ import annotations

import json
from pathlib import Path

from helpers.scripts import ROOT, load_script

zoo = load_script("dev/make_zoo_table.py")


def test_the_page_is_up_to_date() -> None:
    assert zoo.main(["--check"]) == 0, "run python dev/make_zoo_table.py"


def test_every_figure_is_marked_and_has_a_source_and_a_recipe_that_exists() -> None:
    rows = zoo.load_rows(ROOT / "results")
    assert len(rows) >= 50
    for row in rows:
        assert row["mark"] in zoo.MARKS
        assert row["source"]
        assert row["metrics"]
        assert row["recipe"] is None or (ROOT / row["recipe"]).is_file(), row["recipe"]


def test_recipes_that_name_a_published_figure_name_that_of_the_table() -> None:
    for row in zoo.load_rows(ROOT / "results"):
        if row["recipe"] and row["mark"] == "paper" and row["data"] != "COCO test-dev":
            head = (ROOT / row["recipe"]).read_text().splitlines()[0]
            assert f"Published AP {row['metrics']['box AP']}" in head, row["recipe"]


def test_runs_and_benchmarks_of_ours_are_marked_as_such(tmp_path: Path) -> None:
    row = {"table": "T", "model": "M", "recipe": None, "data": "D", "metrics": {"box AP": 12.34}}
    (tmp_path / "published.json").write_text(json.dumps([{**row, "source": "a paper"}]))
    (tmp_path / "runs").mkdir()
    ours = {**row, "metrics": {"AR": 5.0}, "commit": "abc", "date": "2026-01-01", "machine": "a laptop"}
    (tmp_path / "runs/m.json").write_text(json.dumps(ours))
    (tmp_path / "bench").mkdir()
    timing = {"backbone": "R-50", "size": [64, 96], "latency_ms": 1.5, "ratio_r50": 1.0}
    bench = {"machine": "a laptop", "date": "2026-01-01", "commit": "abc", "rows": [timing]}
    (tmp_path / "bench/backbones.json").write_text(json.dumps(bench))
    timed = {"size": [64, 96], "parameters_M": 1.5, "multiply_adds_G": 2.5, "runtimes_ms": {"PyTorch": 3.4}}
    mine = {**timed, "model": "tiny", "whose": "ours", "recipe": "configs/tiny.yaml", "active": 10}
    theirs = {**timed, "model": "other", "whose": "somebody"}
    (tmp_path / "bench/peers.json").write_text(json.dumps({**bench, "rows": [mine, theirs]}))
    page = zoo.zoo(tmp_path)
    assert "| [tiny](configs/tiny.yaml) | 64x96 | 10 | 1.50 | 2.50 | 3 | ours |" in page
    assert "somebody" not in page
    assert "| M | 12.3 |  | paper | a paper |" in page
    assert "| M |  | 5.0 | ours | commit abc, 2026-01-01, a laptop |" in page
    assert "| R-50 | 64x96 | 1.50 | 1.00 |" in page
    assert "| VoVNet V-39-eSE | 25.18 | 7.075 | ours |" in page
