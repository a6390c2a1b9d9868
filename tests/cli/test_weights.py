"""A checkpoint that does not fill the model is refused by every command that takes weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from d2_ext.cli import analyze_duplicates, analyze_model, export, predict, train
from d2_ext.data import register_coco_folder
from d2_ext.demo.page import Demo
from d2_ext.errors import CheckpointError
from d2_ext.report.cost import operation_blocks
from d2_ext.report.run_folder import read_run

import cv2
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.inference_detectors import CEASC, noise, small_cfg, write_weights

NAME = "tests_weights"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose ``model_final.pth`` lacks a layer of the head, and an image with its data set."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images/a.png"), noise(64, 96))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}],
        "annotations": [annotation],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate("abcd")],
    }
    (folder / "all.json").write_text(json.dumps(content))
    register_coco_folder(NAME, folder, json_file="all.json")
    write_weights(small_cfg(CEASC, "DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)"), folder)
    content = torch.load(folder / "model_final.pth", weights_only=True)
    lost = [key for key in content["model"] if key.startswith("head.reg_tower.layers.0.")]
    assert lost
    content["model"] = {key: value for key, value in content["model"].items() if key not in lost}
    torch.save(content, folder / "model_final.pth")
    yield folder
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "predict": (predict.main, "{image} --weights {weights} --output {out} --device cpu"),
    "predict with a config": (
        predict.main,
        "{image} --weights {weights} --config-file {config} --output {out} --device cpu --masks --no-drawings",
    ),
    "export": (export.main, "--config-file {config} --weights {weights} --format torch --output {out}.pt2"),
    "analyze_duplicates": (analyze_duplicates.main, "--model a {config} {weights} --output {out}"),
    "analyze_model": (analyze_model.main, "--config-file {config} --weights {weights} --images {image}"),
    "analyze_model with a key": (
        analyze_model.main,
        "--config-file {config} --images {image} --opts MODEL.WEIGHTS {weights}",
    ),
    "train_net --eval-only": (
        train.main,
        "--config-file {config} --eval-only MODEL.WEIGHTS {weights} OUTPUT_DIR {out}",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_weights_that_leave_a_part_random(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, line = COMMANDS[name]
    words = {"image": run / "images/a.png", "weights": run / "model_final.pth", "config": run / "config.yaml"}
    assert main(line.format(**words, out=tmp_path / "out").split()) == 1
    assert "model_final.pth does not fit the model: of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "something was written"


def test_the_demo_refuses_them(run: Path) -> None:
    demo = Demo({"a": run / "model_final.pth"}, device="cpu")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        demo.run((run / "images/a.png").read_bytes(), "a", 0.3, False)


def test_the_report_says_so_in_the_place_of_the_operations(run: Path) -> None:
    blocks = operation_blocks(read_run(run), DatasetCatalog.get(NAME))
    assert [block.kind for block in blocks] == ["table", "text", "missing"]
    assert "does not fit the model" in blocks[2].why
