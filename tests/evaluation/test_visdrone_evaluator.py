"""The VisDrone evaluator: data set dicts in, figures and official files out; and the choice of evaluators."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import d2_ext
from d2_ext.data.formats.visdrone import load_visdrone, register_visdrone
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.evaluation import VisDroneEvaluator, build_evaluator

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

from helpers.forked import start_processes
from helpers.visdrone_judging import evaluate, instances_of, judge_half, perfect

NAME = "test_visdrone_evaluator"
TEXTS = {
    # a car, a van; an ignored region; "others"; a car with score 0
    "a": "10,10,20,20,1,4,0,0\n50,10,20,20,1,5,0,0\n0,100,50,50,0,0,0,0\n"
    "100,100,20,20,0,11,0,0\n150,10,20,20,0,4,0,0\n",
    "b": "10,10,20,20,1,4,0,0\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Two images of 200 x 200 px, registered as NAME."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for stem, text in TEXTS.items():
        Image.new("RGB", (200, 200)).save(root / "images" / f"{stem}.jpg")
        (root / "annotations" / f"{stem}.txt").write_text(text)
    register_visdrone(NAME, root)
    yield root
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def _cfg(output: Path, max_detections: int = 500) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.OUTPUT_DIR = str(output)
    cfg.TEST.DETECTIONS_PER_IMAGE = max_detections
    return cfg


def test_regions_drop_ignored_objects_excuse_and_others_do_nothing(folder: Path) -> None:
    records = load_visdrone(folder)
    evaluator = VisDroneEvaluator(NAME)
    assert evaluate(evaluator, perfect, records)["visdrone"]["AP"] == pytest.approx(100)

    def with_extra(box: list[float]) -> Callable[[dict[str, Any]], dict[str, Instances]]:
        def predict(record: dict[str, Any]) -> dict[str, Instances]:
            boxes = [box, [10, 10, 30, 30]] + ([[50, 10, 70, 30]] if record["image_id"] == 1 else [])
            return instances_of(boxes, [3, 3, 4][: len(boxes)], [0.95, 0.9, 0.9][: len(boxes)])

        return predict

    car = lambda box: evaluate(evaluator, with_extra(box), records[:1])["visdrone"]["AP-car"]  # noqa: E731
    # One of the two cars is found (only image "a" is processed); with a wrong one before it, precision is 1/2.
    assert car([10, 110, 30, 130]) == pytest.approx(50)  # in the ignored region: dropped
    assert car([150, 10, 170, 30]) == pytest.approx(50)  # on the car of score 0: excused
    assert car([100, 100, 120, 120]) == pytest.approx(25)  # on "others": wrong, as in the tool
    assert car([100, 50, 120, 70]) == pytest.approx(25)  # on nothing: wrong


def test_the_result_has_both_class_means_and_all_classes(folder: Path) -> None:
    def only_cars(record: dict[str, Any]) -> dict[str, Instances]:
        return instances_of([[10, 10, 30, 30]], [3], [0.9])

    scores = evaluate(VisDroneEvaluator(NAME), only_cars, load_visdrone(folder))["visdrone"]
    # car: AP 100, in 2 images; van: AP 0, in 1
    assert scores["AP"] == pytest.approx(200 / 3)
    assert scores["AP_plain"] == scores["AP50_plain"] == pytest.approx(50)
    assert (scores["AP-car"], scores["AP-van"]) == (pytest.approx(100), 0)
    assert np.isnan(scores["AP-bus"])
    assert {"AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "AR500"} <= set(scores)
    plain = evaluate(VisDroneEvaluator(NAME, class_weighting="plain"), only_cars, load_visdrone(folder))["visdrone"]
    assert plain["AP"] == pytest.approx(50)


def test_tables_name_classes_and_sizes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        evaluate(VisDroneEvaluator(NAME), perfect, load_visdrone(folder))
    for word in ("APs", "APm", "APl", "AR500", "AP_plain", "awning-tricycle"):
        assert word in caplog.text


def test_official_files_hold_all_images_best_first(folder: Path, tmp_path: Path) -> None:
    def predict(record: dict[str, Any]) -> dict[str, Instances]:
        return instances_of([[1, 2, 4, 6.5], [10, 10, 30, 30]], [0, 3], [0.25, 0.75])

    evaluate(VisDroneEvaluator(NAME, output_dir=str(tmp_path / "out")), predict, load_visdrone(folder)[:1])
    files = tmp_path / "out/visdrone_results"
    assert (files / "a.txt").read_text() == (
        "10.00,10.00,20.00,20.00,0.750000,4,-1,-1\n1.00,2.00,3.00,4.50,0.250000,1,-1,-1\n"
    )
    assert (files / "b.txt").read_text() == ""
    written = json.loads((tmp_path / "out/visdrone_metrics.json").read_text())
    assert written["class_weighting"] == "image_frequency"
    assert written["visdrone"]["AP-bus"] is None


def test_wrong_predictions_and_settings_are_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = load_visdrone(folder)[0]
    with pytest.raises(ConfigError, match="class_weighting='median'"):
        VisDroneEvaluator(NAME, class_weighting="median")
    with pytest.raises(ConfigError, match="predicts class 10.*NUM_CLASSES to 10"):
        evaluate(VisDroneEvaluator(NAME), lambda _: instances_of([[0, 0, 9, 9]], [10], [0.5]), [record])
    with pytest.raises(DatasetError, match="image_id 99"):
        evaluate(VisDroneEvaluator(NAME), perfect, [{**record, "image_id": 99}])
    assert evaluate(VisDroneEvaluator(NAME), perfect, []) == {}
    assert "got no predictions" in caplog.text


def test_both_metrics_run_on_visdrone_and_coco_knows_no_regions(folder: Path, tmp_path: Path) -> None:
    records = load_visdrone(folder)
    evaluator = build_evaluator(_cfg(tmp_path), NAME)
    results = evaluate(evaluator, perfect, records)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["visdrone"]["AP"] == pytest.approx(100)
    assert {"APs", "APm", "APl", "AP-car"} <= set(results["bbox"])
    results_file = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert {r["category_id"] for r in results_file} == {4, 5}  # the numbers of the official files

    def with_detection_in_region(record: dict[str, Any]) -> dict[str, Instances]:
        return instances_of([[10, 110, 30, 130], [10, 10, 30, 30], [50, 10, 70, 30]], [3, 3, 4], [0.95, 0.9, 0.9])

    results = evaluate(evaluator, with_detection_in_region, records)
    assert results["visdrone"]["AP-car"] > results["bbox"]["AP-car"]


def test_coco_judges_more_than_100_detections_per_image(folder: Path, tmp_path: Path) -> None:
    def predict(record: dict[str, Any]) -> dict[str, Instances]:
        wrong = [[100.0, 60.0, 110.0, 70.0]] * 150
        boxes = [*wrong, [10, 10, 30, 30], [50, 10, 70, 30]]
        return instances_of(boxes, [3] * 151 + [4], [0.9] * 150 + [0.8] * 2)

    records = load_visdrone(folder)
    many = evaluate(build_evaluator(_cfg(tmp_path / "500"), NAME), predict, records)["bbox"]
    few = evaluate(build_evaluator(_cfg(tmp_path / "100", 100), NAME), predict, records)["bbox"]
    assert many["AP-car"] > 0
    assert few["AP-car"] == 0
    assert many["APs"] > 0


def test_a_changed_data_set_is_never_judged_by_an_old_conversion(folder: Path, tmp_path: Path) -> None:
    first = evaluate(build_evaluator(_cfg(tmp_path), NAME), perfect, load_visdrone(folder))["bbox"]
    assert "AP-bus" in first
    assert np.isnan(first["AP-bus"])
    (folder / "annotations/b.txt").write_text("10,10,20,20,1,9,0,0\n")  # the car of "b" becomes a bus
    second = evaluate(build_evaluator(_cfg(tmp_path), NAME), perfect, load_visdrone(folder))["bbox"]
    assert second["AP-bus"] == pytest.approx(100)
    assert "json_file" not in MetadataCatalog.get(NAME).as_dict()


def test_an_unknown_data_set_or_evaluator_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data set 'visdrone_vall'.*Did you mean 'visdrone_val'"):
        build_evaluator(_cfg(tmp_path), "visdrone_vall")
    DatasetCatalog.register("test_no_type", list)
    try:
        with pytest.raises(ConfigError, match="evaluator_type=None. Expected one of coco, visdrone"):
            build_evaluator(_cfg(tmp_path), "test_no_type")
    finally:
        DatasetCatalog.remove("test_no_type")
        if "test_no_type" in MetadataCatalog.list():
            MetadataCatalog.remove("test_no_type")


def test_two_processes_are_gathered_on_the_first(folder: Path, tmp_path: Path) -> None:
    start_processes(judge_half, args=(NAME, str(folder), str(tmp_path / "init")), nprocs=2)


def testperfect_detections_of_real_images_give_100(real_data: Path) -> None:
    root = real_data / "visdrone"
    register_visdrone("test_visdrone_real", root, root / "split_val.txt")
    try:
        evaluator = VisDroneEvaluator("test_visdrone_real")
        scores = evaluate(evaluator, perfect, load_visdrone(root, root / "split_val.txt"))["visdrone"]
    finally:
        DatasetCatalog.remove("test_visdrone_real")
        MetadataCatalog.remove("test_visdrone_real")
    assert scores["AP"] == pytest.approx(100)
    assert scores["AR500"] == pytest.approx(100)
    assert scores["AR10"] < 100  # most images show more than 10 objects
