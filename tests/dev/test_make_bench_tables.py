"""The tables of pages are those of the measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import load_script

tool = load_script("dev/make_bench_tables.py")
FIGURES = {"ms": 20.0, "ratio": 1.5, "megabytes": 3.25, "max_box_diff": 6.1e-5, "max_score_diff": 3e-7}
COUNTS = {"detections": 40, "matched": 39, "unmatched": 0}


def written(folder: Path, kind: str, **changes: Any) -> Path:
    """A page with one table of one model and one file."""
    row = {"config": "fcos_R18_synthetic", "side": "onnx", **FIGURES, **COUNTS, **changes}
    content = {"machine": "a laptop", "date": "2026-01-01", "commit": "abc", "rows": [{**row, "side": "eager"}, row]}
    (folder / "some.json").write_text(json.dumps(content))
    page = folder / "page.md"
    page.write_text(f"before\n<!-- table: some.json {kind} -->\nold\n<!-- end of table -->\nafter\n")
    return page


def cells(page: Path) -> list[list[str]]:
    """Cells of the lines of the table."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_pages_are_up_to_date() -> None:
    assert tool.main(["--check"]) == 0, "run python dev/make_bench_tables.py"


def test_differences_are_those_of_the_files_alone(tmp_path: Path) -> None:
    page = written(tmp_path, "differences")
    given = ["--page", str(page), "--results", str(tmp_path)]
    assert tool.main([*given, "--check"]) == 1
    assert tool.main(given) == 0
    assert tool.main([*given, "--check"]) == 0
    model = "[fcos_R18_synthetic](../configs/quickstart/fcos_R18_synthetic.yaml)"
    assert cells(page)[1:] == [[model, "onnx", "40", "39", "0", "6e-05", "3e-07", "30", "20", "1.50"]]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "a laptop; 2026-01-01, commit abc" in text
    assert "old" not in text


def test_ap_stands_where_it_was_measured(tmp_path: Path) -> None:
    given = ["--page", str(tmp_path / "page.md"), "--results", str(tmp_path)]
    page = written(tmp_path, "speed")
    assert tool.main(given) == 0
    assert cells(page)[2][1:] == ["onnx", "20.0", "1.50", "3.2"]
    page = written(tmp_path, "speed", AP=28.123, AP50=59.5)
    assert tool.main(given) == 0
    assert cells(page)[2][1:] == ["onnx", "20.0", "1.50", "3.2", "28.12", "59.50"]


@pytest.mark.parametrize(("kind", "file"), [("colours", "some.json"), ("speed", "none.json")])
def test_an_unknown_table_is_named(tmp_path: Path, kind: str, file: str, capsys: pytest.CaptureFixture) -> None:
    page = written(tmp_path, kind)
    page.write_text(page.read_text().replace("some.json", file))
    assert tool.main(["--page", str(page), "--results", str(tmp_path)]) == 1
    assert (kind if file == "some.json" else file) in capsys.readouterr().err


def test_peers_stand_from_the_fastest_on_with_the_faster_runtime_of_each(tmp_path: Path) -> None:
    figures = {"parameters_M": 2.5, "runtimes_ms": {"PyTorch": 151.2, "ONNX Runtime": 103.4}, "ms": 103.4}
    ours = {"model": "fcos_sparse_n", "whose": "ours", "multiply_adds_G": 6.54, **figures, "ms": 90.2}
    rows = [{"model": "other", "whose": "a package", **figures}, ours]
    content = {"machine": "a laptop", "date": "2026-01-01", "commit": "abc", "rows": rows}
    (tmp_path / "some.json").write_text(json.dumps(content))
    page = tmp_path / "page.md"
    page.write_text("<!-- table: some.json peers -->\n<!-- end of table -->\n")
    assert tool.main(["--page", str(page), "--results", str(tmp_path)]) == 0
    name = "[fcos_sparse_n](../configs/Lite/fcos_sparse_n.yaml)"
    assert cells(page)[1:] == [
        [name, "ours", "2.50", "6.5", "151", "103", "**90**"],
        ["other", "a package", "2.50", "", "151", "103", "**103**"],
    ]


def test_a_proposal_stands_with_its_share_of_the_best_cell(tmp_path: Path) -> None:
    aps = {"p2": 20.0, "p3": 10.0, "proposal of first rules": 8.0, "proposal": 19.0}
    rows = [{"data": "cells", "images": 87, "cell": cell, "AP": ap} for cell, ap in aps.items()]
    line = tool.advice(rows).splitlines()[2]
    found = [cell.strip() for cell in line.strip("|").split("|")]
    assert found == ["cells", "87", "20.0", "10.0", "8.0 (40%)", "19.0 (95%)"]
    nothing_learned = tool.advice([{**row, "AP": row["AP"] / 100} for row in rows])
    assert "%" not in nothing_learned


def test_classes_have_a_column_each() -> None:
    row = {"training": "before", "AP": 37.5, "AP50": 69.26, "AP50_by_class": {"Car": 89.56, "Bus": 25.0}}
    head, _, line = tool.classes([row]).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["training", "AP", "AP50", "AP50 Car", "AP50 Bus"]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["before", "37.5", "69.3", "89.6", "25.0"]


def test_heads_stand_a_line_each_with_their_bounds(tmp_path: Path) -> None:
    head = {
        "size": [512, 640],
        "channels": 64,
        "layers": 2,
        "head_ratio": 3.456,
        "head_bound": 6.21,
        "head_dense_s": 0.1,
    }
    page = written(tmp_path, "heads", **head, masks="10 %")
    assert tool.main(["--page", str(page), "--results", str(tmp_path)]) == 0
    assert cells(page)[1:] == [["512x640", "64", "2", "3.46 (6.2)", "100"]]
