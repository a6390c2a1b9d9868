"""``--print-config``."""

from __future__ import annotations

from pathlib import Path

import train_net
from d2_ext.config.load import merge_config

import pytest
import yaml


def test_it_prints_a_config_that_gives_the_same_run_and_says_what_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("MODEL: {META_ARCHITECTURE: RetinaNet, DEVICE: cpu}\nSOLVER: {BASE_LR: 0.5, MAX_ITER: 300}\n")
    output = tmp_path / "run"
    options = ["SOLVER.MAX_ITER", "20", "OUTPUT_DIR", str(output)]
    assert train_net.main(["--config-file", str(recipe), "--print-config", *options]) == 0
    printed = capsys.readouterr().out
    assert "  BASE_LR: 0.5  # config file, was 0.001\n" in printed
    assert "  MAX_ITER: 20  # command line, was 300\n" in printed
    assert "  GAMMA: 0.1\n" in printed
    assert not output.exists()
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    expected = merge_config(recipe, options)
    assert yaml.safe_load(merge_config(again).dump()) == yaml.safe_load(expected.dump())


def test_it_refuses_what_a_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_net.main(["--print-config", "SOLVER.MAX_ITR", "20"]) == 2
    assert "SOLVER.MAX_ITER" in capsys.readouterr().err
