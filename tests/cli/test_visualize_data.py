"""Images of augmented ground truth, from a config or a folder."""

from __future__ import annotations

from pathlib import Path

from d2_ext.cli import visualize_data as tool
from d2_ext.visualization import contact_sheet, draw_ground_truth

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

from helpers.own_folders import SPLITS, visdrone_folder
from helpers.scripts import ROOT

CONFIG = str(ROOT / "configs/quickstart/fcos_R18_synthetic.yaml")


def test_it_draws_augmented_tiles_of_a_folder(tmp_path: Path) -> None:
    data = visdrone_folder(tmp_path / "drone", SPLITS)
    output = tmp_path / "look"
    options = ["INPUT.TILES.ENABLED", "True", "INPUT.TILES.SIZE", "[64, 64]"]
    arguments = ["--config-file", CONFIG, "--data", str(data), "--output", str(output), "--count", "2", "--quiet"]
    assert tool.main([*arguments, "--repeat", "2", *options]) == 0
    names = sorted(path.name for path in output.iterdir())
    assert len(names) == 5
    assert "sheet.jpg" in names
    assert tool.main(arguments) == 2, "the folder holds files"
    assert tool.main([*arguments, "--overwrite", "INPUT.TILES.OVERLAP", "7.0", "INPUT.TILES.ENABLED", "True"]) == 2


def test_boxes_are_drawn_where_they_are_and_regions_grey() -> None:
    truth = Instances((80, 100), gt_boxes=Boxes(torch.tensor([[10.0, 20, 40, 60], [60, 20, 90, 60]])))
    truth.gt_classes = torch.tensor([0, -1])
    mapped = {"image": torch.zeros(3, 80, 100, dtype=torch.uint8), "instances": truth}
    drawn = draw_ground_truth(mapped, Metadata(name="x", thing_classes=["dog"]), "BGR")
    assert drawn.shape == (512, 640, 3)  # enlarged 6.4 times
    object_edge, region_edge = drawn[300, 60:70].max(axis=0).astype(int), drawn[300, 380:389].max(axis=0).astype(int)
    assert np.ptp(object_edge) > 50, "a colour"
    assert region_edge.max() > 50
    assert np.ptp(region_edge) < 20, "grey"
    assert drawn[300, 330].max() < 20, "nothing between them"


def test_a_sheet_has_rows_of_images() -> None:
    images = [np.full((50, 100, 3), 10, np.uint8)] * 5
    sheet = contact_sheet(images, columns=4, side=96)
    assert sheet.shape == (2 * (48 + 4), 4 * (96 + 4), 3)
    assert (sheet[0, 0] == 10).all()
    assert (sheet[60, 150] == 255).all()


def test_wrong_usage_gives_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--config-file", "no.yaml", "--output", str(tmp_path / "o")]) == 2
    with pytest.raises(SystemExit) as stop:
        tool.main(["--config-file", CONFIG, "--output", str(tmp_path / "o"), "--count", "0"])
    assert stop.value.code == 2
    assert "expected a whole number from 1" in capsys.readouterr().err


def test_the_help_has_three_examples() -> None:
    assert tool.argument_parser().format_help().count("python tools/visualize_data.py") == 3
