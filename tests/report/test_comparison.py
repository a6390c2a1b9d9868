"""Several runs on one page, with figures done by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from d2_ext.cli import report as tool
from d2_ext.errors import ConfigError
from d2_ext.report.comparison import comparison_text, write_comparison

import pytest


def _run(folder: Path, seed: int, ap: float | None, rate: float = 0.1, name: str = "out") -> Path:
    folder.mkdir(parents=True)
    config = f"SEED: {seed}\nOUTPUT_DIR: {name}{seed}\nSOLVER: {{BASE_LR: {rate}}}\nWANDB: {{NAME: run{seed}}}\n"
    (folder / "config.yaml").write_text(config)
    rows: list[dict[str, float]] = [{"iteration": 9, "total_loss": 2.0}, {"iteration": 19, "total_loss": 1.0}]
    if ap is not None:
        rows[0]["bbox/AP"] = 1.0
        rows[1] |= {"bbox/AP": ap, "bbox/AP-<b>": 2 * ap}
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def _rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_seeds_of_one_config_have_a_mean_and_a_spread(tmp_path: Path) -> None:
    folders = [_run(tmp_path / f"seed{n}", n, ap) for n, ap in ((1, 10.0), (2, 12.0), (3, 17.0))]
    page = write_comparison(folders, tmp_path / "out/page.html").read_text()
    spread = math.sqrt((9 + 1 + 16) / 2)
    assert ["bbox/AP", "3", "13.00", f"{spread:.2f}", "10.00", "17.00"] in _rows(page)
    assert ["bbox/AP-&lt;b&gt;", "3", "26.00", f"{2 * spread:.2f}", "20.00", "34.00"] in _rows(page)
    assert ["seed2", "2", "20", "12.00", "1.00"] in _rows(page)
    assert "same config but for the seed" in page
    assert "bbox/AP over the iterations. At the end: seed1 10.00, seed2 12.00, seed3 17.00." in page
    assert page.count("<figure") == 2
    assert "<b>" not in page
    assert "| bbox/AP " in comparison_text(folders)


def test_runs_of_other_configs_have_tables_of_their_own_and_are_told_apart(tmp_path: Path) -> None:
    folders = [_run(tmp_path / "a/seed1", 1, 10.0), _run(tmp_path / "a/seed2", 2, None)]
    folders.append(_run(tmp_path / "b", 1, 30.0, rate=0.5))
    page = write_comparison(folders, tmp_path / "page.html").read_text()
    assert ["bbox/AP", "1", "10.00", "\N{EN DASH}", "10.00", "10.00"] in _rows(page)
    assert ["bbox/AP", "1", "30.00", "\N{EN DASH}", "30.00", "30.00"] in _rows(page)
    assert ["SOLVER.BASE_LR", "0.1", "0.5"] in _rows(page)
    assert comparison_text(folders).count("bbox/AP ") == 2
    assert "a/seed1, a/seed2:" in comparison_text(folders)


def test_the_tool_compares_what_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(_run(tmp_path / f"seed{n}", n, 5.0 * n)) for n in (1, 2)]
    assert tool.main(folders) == 0
    assert f"Wrote {tmp_path / 'comparison.html'}" in capsys.readouterr().out
    assert tool.main([*folders, "--data", str(tmp_path)]) == 2
    assert "are about one run" in capsys.readouterr().err
    assert tool.main([folders[0], folders[0]]) == 2
    assert "needs two run folders" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no run folder"):
        write_comparison([folders[0], tmp_path], tmp_path / "page.html")
