"""The benchmark of tiles judges the images it looks at, and leaves alone the run that it takes the weights of."""

from __future__ import annotations

from pathlib import Path

import d2_ext

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from helpers.scripts import load_script
from helpers.small_runs import fresh_data

benchmark_script = load_script("benchmarks/tiled_inference.py")


def test_images_that_are_left_out_are_not_counted_as_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fresh_data(tmp_path / "data")
    truths = iter(DatasetCatalog.get("small_images"))

    def perfect(image: np.ndarray) -> Instances:
        truth = next(truths)["annotations"]
        boxes = torch.tensor([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in truth])
        classes = torch.tensor([a["category_id"] for a in truth], dtype=torch.int64)
        return Instances(
            image.shape[:2], pred_boxes=Boxes(boxes), scores=torch.full((len(truth),), 0.9), pred_classes=classes
        )

    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    scores, seconds = benchmark_script.evaluate(cfg, "small_images", perfect, 2)  # of 7; no and two boxes
    assert scores["AP"] == pytest.approx(100)
    assert seconds >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "the folder of a run is left alone"
