"""The page on reliability is that of the kept figures, and each promise has its test."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from helpers import fault_figures
from helpers.scripts import ROOT, load_script

tool = load_script("dev/make_reliability_page.py")
LINE = {"promise": "P", "test": "tests/a.py::test_b", "cases": 3, "passed": 3, "figures": {"x": {"mb": 1}}}


def test_the_page_is_up_to_date() -> None:
    assert tool.main(["--check"]) == 0


def test_each_promise_names_a_test_that_exists() -> None:
    lines = tool.read_lines(tool.KEPT)
    assert lines
    for line in lines:
        if line["test"].startswith("python "):  # a longer run
            assert (ROOT / line["test"].split()[1]).is_file(), line["test"]
            continue
        path, _, name = line["test"].partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {name.partition('[')[0] or 'test_'}", text, re.MULTILINE), line["test"]


def test_each_test_that_reports_has_its_row() -> None:
    rows = {line["test"].partition("[")[0] for line in tool.read_lines(tool.KEPT)}
    assert reporting_tests() | set(fault_figures.COUNTED) <= rows
    for fuzzer in ("coverage_guided", "mutated_files"):
        assert any(row.startswith(f"python tests/fuzz/{fuzzer}.py") for row in rows), fuzzer
    assert "tiled prediction" in json.loads(tool.SOAK.read_text())["phases"]


def reporting_tests() -> set[str]:
    """Tests that call ``report``, as rows name them."""
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "from helpers.fault_figures import report" in text:
            tests = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
            found |= {
                f"{path.relative_to(ROOT).as_posix()}::{test.name}"
                for test in tests
                if any(isinstance(n, ast.Call) and getattr(n.func, "id", "") == "report" for n in ast.walk(test))
            }
    return found


def test_each_promise_was_kept_in_the_last_run() -> None:
    assert all(line["passed"] == line["cases"] > 0 for line in tool.read_lines(tool.KEPT))


def test_each_failure_of_the_sweep_ended_as_promised() -> None:
    rows = json.loads(tool.FAULTS.read_text())["rows"]
    assert all(row["as_promised"] == row["failures"] > 0 for row in rows)
    assert sum(row["failures"] for row in rows) >= 1000


def test_the_code_that_meets_files_of_strangers_is_covered() -> None:
    rows = json.loads(tool.COVERAGE.read_text())["rows"]
    assert [row["part"] for row in rows] == list(tool.COVERED)
    assert all(row["percent"] >= 90 for row in rows)


def test_coverage_is_that_of_lines_and_branches() -> None:
    def file(lines: int, covered: int, branches: int, taken: int) -> dict[str, dict[str, float]]:
        share = 100 * (covered + taken) / (lines + branches)
        counts = {
            "num_statements": lines,
            "covered_lines": covered,
            "num_branches": branches,
            "covered_branches": taken,
        }
        return {"summary": {**counts, "percent_covered": share}}

    files = {part + "a.py" * part.endswith("/"): file(4, 4, 0, 0) for part in tool.COVERED}
    files["d2_ext/export/b.py"] = file(6, 3, 2, 2)
    row = tool.covered({"files": files})["rows"][-1]
    assert (row["lines"], row["branches"]) == (10, 2)
    assert (row["percent"], row["least"]) == (75.0, "b.py 62.5")  # 4 + 5 of 12


def test_the_last_line_about_a_promise_counts(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    path.write_text("".join(json.dumps({**LINE, "passed": passed}) + "\n" for passed in (2, 3)))
    (line,) = tool.read_lines(path)
    assert line == LINE
    assert "| P | `tests/a.py::test_b` | 3 | 3 | x: mb 1 |" in tool.page([line], None)


def test_a_line_without_a_test_is_named(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    path.write_text('{"promise": "P"}\n')
    with pytest.raises(ValueError, match="line 1: expected an object with promise, test"):
        tool.read_lines(path)
