"""The benchmark of tiles judges the images it looks at, and leaves alone the run that it takes the weights of."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import d2_ext

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from small_runs import fresh_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark_tiles", ROOT / "benchmarks/tiled_inference.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_tiles", module)
    spec.loader.exec_module(module)
    return module


def test_images_that_are_left_out_are_not_counted_as_missed(
    benchmark_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
