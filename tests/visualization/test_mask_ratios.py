"""The plot of active shares: what is read from metrics.json, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext.errors import DatasetError
from d2_ext.visualization.mask_ratios import plot_mask_ratios, read_mask_ratios

import pytest


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    lines = [
        {"iteration": i, "loss_cls": 1.0, "mask_ratio/cls": 0.5 / (i + 1), "mask_ratio/target": 0.1,
         "mask_ratio/p3_cls": 0.4, "mask_ratio/p3_target": 0.2}
        for i in (0, 20)
    ]  # fmt: skip
    path = tmp_path / "metrics.json"
    path.write_text("\n".join(json.dumps(line) for line in [*lines, {"iteration": 20, "bbox/AP": 3.0}]) + "\n")
    return path


def test_shares_are_read_by_level_and_branch(metrics: Path) -> None:
    curves = read_mask_ratios(metrics)
    assert curves.keys() == {"all", "p3"}
    assert curves["all"]["cls"].tolist() == [[0, 0.5], [20, 0.5 / 21]]
    assert curves["p3"]["target"].tolist() == [[0, 0.2], [20, 0.2]]


def test_a_panel_a_level_shows_the_branches_and_the_target_in_per_cent(metrics: Path) -> None:
    figure = plot_mask_ratios(read_mask_ratios(metrics), title="run")
    everything, p3 = (panel for panel in figure.axes if panel.get_visible())
    assert (everything.get_title(), p3.get_title()) == ("all positions", "p3")
    assert {line.get_label(): line.get_ydata().tolist() for line in p3.lines} == {"cls": [40, 40], "target": [20, 20]}
    assert p3.lines[1].get_linestyle() == "--"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"iteration": 1, "loss_cls": 2.0}\n', "holds no mask_ratio"),
        ('{"iteration": 1, "mask_ratio/cls": 0.2}\n{"iterat', "line 2: not a line of metrics.json"),
        ("3\n", "line 1: not a line"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_mask_ratios(tmp_path / "metrics.json")
    with pytest.raises(DatasetError, match="There is no file"):
        read_mask_ratios(tmp_path / "other.json")
