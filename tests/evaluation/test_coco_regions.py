"""Ignore regions in COCO's metric, on a data set in UAVDT's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import d2_ext
from d2_ext.data.formats.uavdt import load_uavdt, register_uavdt
from d2_ext.evaluation import build_evaluator
from d2_ext.evaluation.coco_regions import write_coco_with_regions

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

NAME = "test_uavdt_regions"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """One image with a car, a bus, and a region at the top; registered as NAME."""
    images, truth = tmp_path / "UAV-benchmark-M/M0101", tmp_path / "GT"
    images.mkdir(parents=True)
    truth.mkdir()
    Image.new("RGB", (200, 200)).save(images / "img000001.jpg")
    (truth / "M0101_gt_whole.txt").write_text("1,1,10,100,40,40,1,1,1\n1,2,100,100,40,40,1,1,3\n")
    (truth / "M0101_gt_ignore.txt").write_text("1,-1,0,0,200,50,-1,-1,-1\n")
    register_uavdt(NAME, tmp_path, ["M0101"])
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def _cfg(output: Path) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.OUTPUT_DIR = str(output)
    cfg.TEST.DETECTIONS_PER_IMAGE = 500
    return cfg


def _scores(folder: Path, output: Path, extra: list[float], label: int) -> dict[str, dict[str, float]]:
    """Figures of perfect detections and one more with a better score."""
    instances = Instances((200, 200))
    instances.pred_boxes = Boxes(torch.tensor([extra, [10.0, 100, 50, 140], [100, 100, 140, 140]]))
    instances.pred_classes = torch.tensor([label, 0, 2])
    instances.scores = torch.tensor([0.95, 0.9, 0.9])
    evaluator = build_evaluator(_cfg(output), NAME)
    evaluator.reset()
    evaluator.process(load_uavdt(folder, ["M0101"]), [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_detections_in_a_region_count_neither_way_in_either_metric(folder: Path, tmp_path: Path, label: int) -> None:
    results = _scores(folder, tmp_path, [20.0, 5, 60, 45], label)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["visdrone"]["AP"] == pytest.approx(100)


def test_detections_elsewhere_are_wrong(folder: Path, tmp_path: Path) -> None:
    results = _scores(folder, tmp_path, [20.0, 150, 60, 190], 0)
    assert results["bbox"]["AP-car"] == pytest.approx(50)
    assert results["visdrone"]["AP-car"] == pytest.approx(50)


def test_half_in_a_region_is_excused_by_visdrone_and_at_low_thresholds_by_coco(folder: Path, tmp_path: Path) -> None:
    results = _scores(folder, tmp_path, [20.0, 22, 60, 62], 0)  # 28 of 40 rows inside: 0.7
    assert results["visdrone"]["AP-car"] == pytest.approx(100)
    # excused at 0.5 to 0.7, wrong (precision 1/2) at the five higher thresholds
    assert results["bbox"]["AP-car"] == pytest.approx(75, abs=5.1)
    assert results["bbox"]["AP50"] == pytest.approx(100)


def test_the_data_sets_metadata_stays_as_it_was(folder: Path, tmp_path: Path) -> None:
    build_evaluator(_cfg(tmp_path), NAME)
    assert "json_file" not in MetadataCatalog.get(NAME).as_dict()


def test_each_region_is_a_crowd_of_every_class(folder: Path, tmp_path: Path) -> None:
    content = json.loads(Path(write_coco_with_regions(NAME, str(tmp_path / "new"))).read_text())
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert [a["category_id"] for a in crowds] == [1, 2, 3]
    assert all(a["bbox"] == [0, 0, 200, 50] for a in crowds)
    assert len({a["id"] for a in content["annotations"]}) == 5
