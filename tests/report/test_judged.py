"""Detections against ground truth by the rules of each kind of data set."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext.config import add_d2_ext_config
from d2_ext.errors import DatasetError
from d2_ext.evaluation import build_evaluator
from d2_ext.report.accuracy import class_accuracies
from d2_ext.report.blocks import MissingInput
from d2_ext.report.judged import judge

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from helpers.report_scene import NAME, detection, judged, objects, registered

CAR, VAN, LARGE = [10.0, 10, 20, 20], [50.0, 10, 40, 40], [90.0, 0, 100, 98]
IMAGES = [
    {"annotations": objects((0, CAR), (1, VAN))},
    {"annotations": objects((0, CAR), (0, LARGE)), "ignore_regions": [[100.0, 0, 100, 100]]},
]


def test_ap_by_class_and_size_is_that_of_hand_counting(tmp_path: Path) -> None:
    with registered(tmp_path, "coco", [{"annotations": objects((0, CAR), (0, LARGE), (1, VAN))}]):
        rows = class_accuracies(judged(tmp_path, [detection(1, 1, CAR, 0.9), detection(1, 2, CAR, 0.8)]))
    car, van = rows
    assert list(car.objects) == [1, 0, 1]
    assert list(van.objects) == [0, 1, 0]
    # One of two cars: precision 1 at the recall points 0.00 to 0.50, 51 of 101.
    assert car.ap == car.ap50 == pytest.approx(51 / 101)
    assert car.by_size[0] == pytest.approx(1)
    assert car.by_size[2] == 0
    assert car.best_f1 == pytest.approx(2 / 3)
    assert car.best_score == pytest.approx(0.9)
    assert van.ap == 0
    assert van.by_size[0] != van.by_size[0]  # no small van


@pytest.mark.parametrize(("kind", "regions"), [("coco", False), ("coco", True), ("visdrone", False)])
def test_it_gives_the_figures_of_the_projects_evaluator(tmp_path: Path, kind: str, regions: bool) -> None:
    found = [
        [(CAR, 0, 0.9), ([52.0, 12, 52 + 40, 12 + 40], 1, 0.8), ([0.0, 50, 10, 60], 0, 0.7)],
        [([10.0, 10, 30, 32], 0, 0.6), ([150.0, 50, 170, 70], 0, 0.95), ([92.0, 0, 190, 98], 0, 0.5)],
    ]
    found[0][0] = ([10.0, 10, 30, 30], 0, 0.9)
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    with registered(tmp_path, kind, IMAGES, coco_ignore_regions=regions):
        evaluator = build_evaluator(cfg, NAME, str(tmp_path / "out"))
        evaluator.reset()
        for record, rows in zip(DatasetCatalog.get(NAME), found, strict=True):
            instances = Instances((100, 200))
            instances.pred_boxes = Boxes(torch.tensor([box for box, _, _ in rows]))
            instances.pred_classes = torch.tensor([k for _, k, _ in rows])
            instances.scores = torch.tensor([score for _, _, score in rows])
            evaluator.process([record], [{"instances": instances}])
        figures = evaluator.evaluate()["visdrone" if kind == "visdrone" else "bbox"]
        results = tmp_path / "out/coco_instances_results.json"
        report = class_accuracies(judge(NAME, results, max_detections=100, command=""))
    for row in report:
        assert 100 * row.ap == pytest.approx(figures[f"AP-{row.name}"], abs=1e-4)


def test_a_detection_in_a_region_is_not_false_where_the_data_set_has_regions(tmp_path: Path) -> None:
    images = [{"annotations": objects((0, CAR)), "ignore_regions": [[100.0, 0, 100, 100]]}]
    rows = [detection(1, 1, [120.0, 20, 30, 30], 0.95), detection(1, 1, CAR, 0.9)]
    ap = {}
    for kind in ("coco", "visdrone", "crowdhuman"):
        with registered(tmp_path, kind, images):
            ap[kind] = class_accuracies(judged(tmp_path, rows))[0].ap50
    assert ap["coco"] == pytest.approx(0.5, abs=0.01)
    assert ap["visdrone"] == pytest.approx(1)
    assert ap["crowdhuman"] == pytest.approx(1)


def test_no_detections_at_all_give_an_ap_of_zero(tmp_path: Path) -> None:
    with registered(tmp_path, "coco", IMAGES):
        assert [row.ap for row in class_accuracies(judged(tmp_path, []))] == [0, 0]


def test_what_is_missing_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="not registered") as unknown:
        judge("nobodys", tmp_path / "x.json", max_detections=100, command="train")
    assert "--data" in unknown.value.block.command
    with registered(tmp_path, "coco", IMAGES), pytest.raises(MissingInput, match="no file") as missing:
        judge(NAME, tmp_path / "x.json", max_detections=100, command="evaluate it")
    assert missing.value.block.command == "evaluate it"
    with registered(tmp_path, "coco", [{}]), pytest.raises(MissingInput, match="no annotations"):
        judged(tmp_path, [])


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        '[{"image_id": 1}]',
        '[{"image_id": [1], "bbox": [1, 2, 3, 4]}]',
        '[{"image_id": 1, "bbox": [1]}]',
        "7",
    ],
)
def test_a_damaged_results_file_is_one_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with registered(tmp_path, "coco", IMAGES), pytest.raises(DatasetError, match="not a list of COCO results"):
        judge(NAME, path, max_detections=100, command="evaluate")


def test_results_of_another_data_set_are_refused(tmp_path: Path) -> None:
    with registered(tmp_path, "coco", IMAGES), pytest.raises(DatasetError, match="image 99"):
        judged(tmp_path, [detection(99, 1, CAR, 0.9)])


def test_crowdhumans_evaluator_writes_what_the_report_reads(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    with registered(tmp_path, "crowdhuman", [{"annotations": objects((0, CAR))}]):
        evaluator = build_evaluator(cfg, NAME, str(tmp_path))
        evaluator.reset()
        instances = Instances((100, 200))
        instances.pred_boxes = Boxes(torch.tensor([[10.0, 10, 30, 30]]))
        instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([0.5])
        evaluator.process(DatasetCatalog.get(NAME), [{"instances": instances}])
        evaluator.evaluate()
        path = tmp_path / "coco_instances_results.json"
        assert json.loads(path.read_text()) == [detection(1, 1, CAR, 0.5)]
        assert class_accuracies(judge(NAME, path, max_detections=100, command=""))[0].ap == pytest.approx(1)
