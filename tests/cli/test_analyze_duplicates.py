"""tools/analyze_duplicates.py: the two best scores of an object, and a run on a tiny data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from d2_ext.cli import analyze_duplicates as tool
from d2_ext.report.duplicates import two_best_scores

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances

from helpers.point_scenes import tiny_cfg

NAME = "tests_duplicates"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[Path]:
    cv2.imwrite(str(tmp_path / "0.png"), np.full((64, 96, 3), 90, dtype=np.uint8))
    annotation = {"bbox": [8, 8, 30, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    record = {"file_name": str(tmp_path / "0.png"), "image_id": 1, "width": 96, "height": 64}
    DatasetCatalog.register(NAME, lambda: [{**record, "annotations": [annotation]}])
    MetadataCatalog.get(NAME).set(thing_classes=list("abcde"), evaluator_type="coco")
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_an_objects_boxes_are_those_of_its_class_that_overlap_it_most() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 2, 2]])
    found = Instances(
        (99, 99),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([0.5, 0.9, 0.8, 0.4, 0.7]),
        pred_classes=torch.tensor([1, 1, 0, 1, 1]),
    )
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    scores = two_best_scores(found, objects, torch.tensor([1, 1, 1]), min_iou=0.5)
    # The third box is of another class, the last overlaps too little.
    np.testing.assert_allclose(scores, [[0.9, 0.5], [0.4, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_a_run_writes_its_table_and_image(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("DATASETS.TEST", (NAME,), "INPUT.MIN_SIZE_TEST", 0, "MODEL.DEFCN.SCORE_THRESH_TEST", 0.0)
    cfg = tiny_cfg("DeFCN", *options, "DATALOADER.NUM_WORKERS", 0)
    torch.save({"model": build_model(cfg).state_dict()}, dataset / "model.pth")
    (dataset / "config.yaml").write_text(cfg.dump())
    output = dataset / "out"
    arguments = ["--model", "A", str(dataset / "config.yaml"), str(dataset / "model.pth"), "--output", str(output)]
    assert tool.main(arguments) == 0
    (row,) = json.loads((output / "duplicates.json").read_text())
    assert row["model"] == "A"
    assert {"AP_with_nms", "AP_without_nms", "mean_second_score"} <= row.keys()
    assert cv2.imread(str(output / "duplicates.png")) is not None
    assert "Wrote" in capsys.readouterr().out


def test_a_missing_config_is_said_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--model", "A", str(tmp_path / "no.yaml"), "w.pth", "--output", str(tmp_path)]) == 2
    assert "no.yaml" in capsys.readouterr().err
