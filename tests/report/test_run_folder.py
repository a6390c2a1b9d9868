"""Run folders as they are found: whole, resumed, cut off, damaged."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext.errors import ConfigError
from d2_ext.report.run_folder import read_run

import pytest


def _write(folder: Path, rows: list[object], config: str = "DATASETS:\n  TEST: [a, b]\n") -> None:
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.json").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def test_a_resumed_run_counts_each_iteration_once_and_damaged_lines_are_left_out(tmp_path: Path) -> None:
    rows = [{"iteration": 1, "x": 1.0}, {"iteration": 2, "x": 5.0}, {"iteration": 2, "x": 2.0, "bbox/AP": 3.0}]
    _write(tmp_path, [*rows, '{"iteration": 3, "x"', '{"x": 1}', "[]", "", {"iteration": 4, "x": float("nan")}])
    run = read_run(tmp_path)
    assert run.series("x") == ([1, 2], [1.0, 2.0])
    assert run.damaged_lines == 3
    assert run.last("bbox/AP") == 3.0
    assert run.last("nothing") is None


def test_evaluations_are_found_for_one_and_for_several_test_sets(tmp_path: Path) -> None:
    keys = ("bbox/AP", "bbox/AP-car", "visdrone_val/visdrone/AP50", "a/bbox/AP", "mask_ratio/cls", "loss/AP")
    _write(tmp_path, [{"iteration": 1, **dict.fromkeys(keys, 1.0)}])
    found = read_run(tmp_path).evaluations()
    assert found == {
        ("", "bbox"): {"AP": "bbox/AP", "AP-car": "bbox/AP-car"},
        ("a", "bbox"): {"AP": "a/bbox/AP"},
        ("visdrone_val", "visdrone"): {"AP50": "visdrone_val/visdrone/AP50"},
    }


def test_predictions_lie_in_a_folder_a_test_set_if_there_are_several(tmp_path: Path) -> None:
    _write(tmp_path, [])
    assert read_run(tmp_path).inference_folder("a") == tmp_path / "inference/a"
    _write(tmp_path, [], "DATASETS:\n  TEST: ('only',)\n")
    assert read_run(tmp_path).test_sets() == ["only"]
    assert read_run(tmp_path).inference_folder("only") == tmp_path / "inference"


@pytest.mark.parametrize("config", ["a: [", "- 1", "a: !!python/object/apply:os.getcwd []"])
def test_a_config_that_cannot_be_read_safely_is_told_and_the_rest_is_read(tmp_path: Path, config: str) -> None:
    _write(tmp_path, [{"iteration": 1, "x": 1.0}], config)
    run = read_run(tmp_path)
    assert run.config == {}
    assert "config.yaml" in run.config_problem
    assert run.last("x") == 1.0


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"it holds notes\.txt"):
        read_run(tmp_path)


def test_commands_quote_a_folder_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    _write(folder, [])
    assert f"'{folder}/config.yaml'" in read_run(folder).evaluate_command()
