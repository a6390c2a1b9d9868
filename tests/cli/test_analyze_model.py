"""The command line of the counter."""

from __future__ import annotations

from pathlib import Path

from d2_ext.cli import analyze_model as tool
from d2_ext.config.load import load_config

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from helpers.scripts import ROOT

CONFIG = str(ROOT / "configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml")
OPTIONS = ["--opts", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "32"]
SMALL = [*OPTIONS, "INPUT.MIN_SIZE_TEST", "96"]


def test_it_prints_parts_levels_and_the_dense_equivalent(capsys: pytest.CaptureFixture) -> None:
    assert tool.main(["--config-file", CONFIG, "--size", "800x1344", "--active", "0.1", "--opts", *OPTIONS[1:5]]) == 0
    printed = capsys.readouterr().out
    assert "| head     | 20.002           | 55.53               | 37.2%   | 435.79                 | 7.85" in printed
    assert "| total    | 43.437           | 149.17" in printed
    assert "reg_tower predictors" in printed
    assert "p7" in printed


def test_it_measures_the_masks_on_images_and_the_time(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, size in (("a", (128, 96)), ("b", (96, 128))):
        Image.new("RGB", size, (90, 120, 30)).save(tmp_path / f"{name}.jpg")
    images = [str(tmp_path / f"{name}.jpg") for name in "ab"]
    arguments = ["--config-file", CONFIG, "--latency", "--images", *images]
    assert tool.main([*arguments, *SMALL]) == 2
    assert "depend on its weights. Give trained ones with --weights" in capsys.readouterr().err
    model = build_model(load_config(CONFIG, SMALL[1:]))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    small = [word for word in SMALL if word not in ("MODEL.WEIGHTS", "")]
    assert tool.main([*arguments, "--weights", str(tmp_path / "model.pth"), *small]) == 0
    printed = capsys.readouterr().out
    assert "| active" in printed
    assert "| reg" in printed
    assert "ms an image (cpu" in printed


def test_wrong_usage_gives_2_and_unusable_files_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert tool.main(["--config-file", CONFIG, *SMALL]) == 2
    assert "share of active positions" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        tool.main(["--config-file", CONFIG, "--active", "2", *SMALL])
    assert stop.value.code == 2
    assert tool.main(["--config-file", CONFIG, "--images", str(tmp_path / "no.jpg"), *SMALL]) == 1
    assert "no.jpg" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        tool.main(["--config-file", CONFIG, "--size", "800", *SMALL])
    assert stop.value.code == 2


def test_the_help_has_three_examples() -> None:
    assert tool.argument_parser().format_help().count("python tools/analyze_model.py") == 3
