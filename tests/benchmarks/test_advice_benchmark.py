"""The benchmark of ``check --advise``: a cell trains and is judged, and cells differ in what they say."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext.config.load import load_config
from d2_ext.config.recipes import RECIPES

import pytest
from detectron2.data import DatasetCatalog

from helpers.own_folders import SPLITS, yolo_folder
from helpers.scripts import load_script

script = load_script("benchmarks/advice.py")
CELL = "p3-p5, crops of 320 px"


def test_a_cell_is_trained_and_its_row_joins_those_of_the_file(tmp_path: Path) -> None:
    folder, file = yolo_folder(tmp_path / "pets", SPLITS), tmp_path / "advice.json"
    other, old = {"data": "other", "cell": CELL, "AP": 1.0}, {"data": "pets", "cell": CELL, "AP": 99.0}
    file.write_text(json.dumps({"rows": [other, old]}))
    argv = ["--data", str(folder), "--name", "pets", "--seconds", "0.1", "--cells", CELL, "--json", str(file)]
    argv += ["--seed", "5"]
    assert script.main([*argv, "--output", str(tmp_path / "runs")]) == 0
    first, row = json.loads(file.read_text())["rows"]
    assert first == other
    assert (row["data"], row["cell"], row["levels"], row["iterations"]) == ("pets", CELL, "p3-p5", 10)
    assert 0 <= row["AP"] < 99
    assert row["seconds"] > 0
    cfg = load_config(next((tmp_path / "runs").rglob("config.yaml")))
    assert (list(cfg.MODEL.FCOS.IN_FEATURES), list(cfg.INPUT.CROP.SIZE)) == (["p3", "p4", "p5"], [320, 320])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SEED) == (2, 10, 1, 5)


def test_grid_cells_leave_the_rules_of_the_proposal_out() -> None:
    recipe = load_config(RECIPES / "quickstart/fcos_R18_synthetic.yaml")
    sizes = {"finest": 3, "coarsest": 7, "crop": 0, "object_share": 0.9, "tile": 1024, "overlap": 0.2}
    sizes |= {"scale": 0.5, "short_side": 300}
    numbers = {"batch": 8, "iterations": 6000, "detections": 150, "repeat_threshold": 0.3}
    proposal = script.Advice(**sizes, **numbers, reasons={})
    assert script.settings("proposal", proposal, recipe) == (proposal, [])
    cell, keys = script.settings("p2-p4, scaled to 320 px", proposal, recipe)
    assert (cell.strides, cell.scale, cell.tile, cell.crop) == ([4, 8, 16], 1.0, 0, 320)
    assert (cell.batch, cell.repeat_threshold) == (2, 0.0)
    assert keys[:2] == ["INPUT.CROP.ENABLED", "False"]
    assert script.settings(CELL, proposal, recipe)[1] == []


def test_images_to_judge_are_spread_over_the_set() -> None:
    DatasetCatalog.register("twelve_images", lambda: [{"image_id": i} for i in range(12)])
    try:
        assert script.some_images("twelve_images", 12) == "twelve_images"
        name = script.some_images("twelve_images", 4)
        assert [record["image_id"] for record in DatasetCatalog.get(name)] == [0, 3, 6, 9]
        DatasetCatalog.remove(name)
    finally:
        DatasetCatalog.remove("twelve_images")


def test_a_folder_that_cannot_be_used_gives_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--data", str(tmp_path), "--name", "none"]) == 1
    assert "advice: " in capsys.readouterr().err
