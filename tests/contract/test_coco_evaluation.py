"""COCO's metrics and the loop of evaluation, on either implementation of Detectron2."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances

NAME = "contract_eval"


@pytest.fixture(autouse=True)
def _free_name() -> Iterator[None]:
    yield
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def register(folder: Path, boxes: dict[int, list[tuple[int, list[float]]]], annotated: bool = True) -> None:
    """Register pictures 400 x 400 with (category id, XYWH box); the categories are 3 'car' and 7 'ship'."""
    annos = [
        {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for n, (i, c, b) in enumerate(((i, c, b) for i, found in boxes.items() for c, b in found), start=1)
    ]
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 400, "width": 400} for i in boxes],
        "categories": [{"id": 3, "name": "car"}, {"id": 7, "name": "ship"}],
    }
    if annotated:
        content["annotations"] = annos
    (folder / "gt.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(folder / "gt.json"), str(folder))
    if annotated:
        DatasetCatalog.get(NAME)  # stores the classes in the metadata


def detections(*rows: tuple[int, float, list[float]]) -> Instances:
    """(class, score, XYXY box) of each detection."""
    return Instances(
        (400, 400),
        pred_boxes=Boxes(torch.tensor([box for _, _, box in rows], dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor([score for _, score, _ in rows], dtype=torch.float32),
        pred_classes=torch.tensor([c for c, _, _ in rows], dtype=torch.int64),
    )


def evaluate(found: dict[int, Instances], **kwargs: Any) -> dict[str, Any]:
    evaluator = COCOEvaluator(NAME, **kwargs)
    evaluator.reset()
    for image_id, instances in found.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


# -- results in COCO's format ------------------------------------------------------------------------------------------


def test_boxes_are_written_with_width_and_height_and_masks_in_json_types() -> None:
    instances = detections((1, 0.5, [10.0, 20.0, 40.25, 80.5]))
    (row,) = instances_to_coco_json(instances, 12)
    assert row == {"image_id": 12, "category_id": 1, "bbox": [10.0, 20.0, 30.25, 60.5], "score": 0.5}
    assert instances_to_coco_json(detections(), 12) == []
    instances.pred_masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    (row,) = instances_to_coco_json(instances, 1)
    assert json.loads(json.dumps(row))["segmentation"]["size"] == [4, 4]


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_exact_boxes_score_one_hundred(tmp_path: Path) -> None:
    # 20 x 20 is small, 50 x 50 medium, 200 x 100 large (limits 32^2 and 96^2).
    register(tmp_path, {1: [(3, [0, 0, 20, 20]), (7, [50, 50, 50, 50])], 2: [(3, [10, 10, 200, 100])]})
    found = {
        1: detections((0, 0.9, [0, 0, 20, 20]), (1, 0.8, [50, 50, 100, 100])),
        2: detections((0, 0.7, [10, 10, 210, 110])),
    }
    keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-car", "AP-ship"]
    assert evaluate(found) == {"bbox": pytest.approx(dict.fromkeys(keys, 100.0))}


@pytest.mark.parametrize("limit", [None, 500])  # two summaries, pycocotools' own and that of another limit
def test_metrics_by_hand(tmp_path: Path, limit: int | None) -> None:
    # Class car: IoU 80/120 = 2/3, a match up to the threshold 0.65, that is at 4 of 10. Class ship: missed.
    register(tmp_path, {1: [(3, [0, 0, 10, 10]), (7, [100, 100, 50, 50])]})
    bbox = evaluate({1: detections((0, 0.9, [0, 2, 10, 12]))}, max_dets_per_image=limit)["bbox"]
    expected = {"AP": 20.0, "AP50": 50.0, "AP75": 0.0, "APs": 40.0, "APm": 0.0, "APl": math.nan}
    assert bbox == pytest.approx({**expected, "AP-car": 40.0, "AP-ship": 0.0}, nan_ok=True)


def test_precision_by_hand(tmp_path: Path) -> None:
    # A hit, then a false alarm, then a hit: precision 1 up to recall 0.5, then 2/3. Of the 101 recall levels 51 are at
    # most 0.5: (51 + 50 * 2/3) / 101.
    register(tmp_path, {1: [(3, [0, 0, 50, 50]), (3, [100, 100, 50, 50])]})
    found = detections((0, 0.9, [0, 0, 50, 50]), (0, 0.8, [200, 200, 260, 260]), (0, 0.7, [100, 100, 150, 150]))
    bbox = evaluate({1: found})["bbox"]
    assert bbox["AP-car"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert math.isnan(bbox["AP-ship"])  # there is no ship
    assert bbox["AP"] == pytest.approx(bbox["AP-car"])


@pytest.mark.parametrize(("limit", "share"), [(None, 100 / 150), (500, 1.0), (20, 20 / 150)])
def test_the_limit_of_detections_per_picture(tmp_path: Path, limit: int | None, share: float) -> None:
    boxes = [[20.0 * (k % 20), 20.0 * (k // 20), 10.0, 10.0] for k in range(150)]
    register(tmp_path, {1: [(3, box) for box in boxes]})
    found = detections(*((0, 1 - k / 1000, [x, y, x + w, y + h]) for k, (x, y, w, h) in enumerate(boxes)))
    bbox = evaluate({1: found}, max_dets_per_image=limit)["bbox"]
    # Without false alarms the AP is the share of the 101 recall levels that is reached.
    expected = 100 * (math.floor(share * 100) + 1) / 101
    assert bbox["AP"] == bbox["APs"] == bbox["AP50"] == bbox["AP-car"] == pytest.approx(expected)
    assert math.isnan(bbox["APm"])


def test_only_some_pictures_may_count(tmp_path: Path) -> None:
    register(tmp_path, {1: [(3, [0, 0, 20, 20])], 2: [(3, [0, 0, 20, 20])]})
    evaluator = COCOEvaluator(NAME)
    for ids, ap in (([1], 100.0), ([2], 0.0)):
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": detections((0, 0.9, [0, 0, 20, 20]))}])
        assert evaluator.evaluate(img_ids=ids)["bbox"]["AP"] == pytest.approx(ap)


def test_without_detections_all_metrics_are_undefined_and_unknown_classes_are_refused(tmp_path: Path) -> None:
    register(tmp_path, {1: [(3, [0, 0, 20, 20])]})
    results = evaluate({1: detections()})
    assert list(results["bbox"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert all(math.isnan(v) for v in results["bbox"].values())
    assert evaluate({}) == {}
    with pytest.raises(AssertionError):
        evaluate({1: detections((2, 0.9, [0, 0, 20, 20]))})


# -- files -------------------------------------------------------------------------------------------------------------


def test_predictions_are_written_with_the_ids_of_the_data_set(tmp_path: Path) -> None:
    register(tmp_path, {1: [(3, [0, 0, 20, 20])]})
    evaluate({1: detections((1, 0.5, [0, 0, 20, 20]))}, output_dir=str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert written == [{"image_id": 1, "category_id": 7, "bbox": [0.0, 0.0, 20.0, 20.0], "score": 0.5}]
    loaded = torch.load(tmp_path / "out" / "instances_predictions.pth")
    assert [p["image_id"] for p in loaded] == [1]


def test_without_annotations_predictions_are_only_written(tmp_path: Path) -> None:
    register(tmp_path, {1: []}, annotated=False)
    assert evaluate({1: detections((0, 0.5, [0, 0, 20, 20]))}, output_dir=str(tmp_path / "out")) == {}
    assert (tmp_path / "out" / "coco_instances_results.json").exists()


def test_a_data_set_of_another_format_is_converted(tmp_path: Path) -> None:
    box = {"bbox": [0, 0, 20, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    DatasetCatalog.register(
        NAME, lambda: [{"file_name": "a.png", "image_id": 1, "height": 400, "width": 400, "annotations": [box]}]
    )
    MetadataCatalog.get(NAME).thing_classes = ["car"]
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(NAME)
    results = evaluate({1: detections((0, 0.5, [0, 0, 20, 20]))}, output_dir=str(tmp_path))
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    assert "AP-car" not in results["bbox"]  # per class only from two classes on
    assert (tmp_path / f"{NAME}_coco_format.json").exists()


# -- the loop ----------------------------------------------------------------------------------------------------------


class Sum(DatasetEvaluator):
    def __init__(self, task: str = "sum") -> None:
        self.task = task

    def reset(self) -> None:
        self.total = 0.0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.total += float(outputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {self.task: {"total": self.total}}


def test_the_model_runs_in_eval_mode_without_gradients() -> None:
    class Model(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x).sum()

    modes: list[tuple[bool, bool]] = []
    model = Model(2, 1).train()
    results = inference_on_dataset(model, [torch.ones(2)] * 3, Sum())
    assert modes == [(False, False)] * 3
    assert model.training
    assert results["sum"]["total"] == pytest.approx(3 * (model.weight.sum() + model.bias.sum()).item(), rel=1e-5)
    with inference_context(model.eval()):
        assert not model.training
    assert not model.training  # the mode it had


def test_evaluators_may_be_a_list_or_missing_and_callbacks_are_called(d2_log: pytest.LogCaptureFixture) -> None:
    called: list[str] = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: (lambda name=name: called.append(name)) for name in names}
    results = inference_on_dataset(lambda x: x, [1, 2], [Sum("a"), Sum("b")], callbacks=callbacks)
    assert results == {"a": {"total": 3.0}, "b": {"total": 3.0}}
    assert called == ["on_start", *["before_inference", "after_inference"] * 2, "on_end"]
    assert inference_on_dataset(lambda x: x, [1, 2], None) == {}
    assert "Total inference time: 0:00:0" in d2_log.text
    assert "s / iter per device, on 1 devices)" in d2_log.text
    both = DatasetEvaluators([Sum("a"), Sum("a")])
    both.reset()
    with pytest.raises(AssertionError, match="a"):  # two of one task
        both.evaluate()


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_are_flattened_and_logged_for_a_spreadsheet(d2_log: pytest.LogCaptureFixture) -> None:
    nested = {"bbox": {"AP": 1.0, "size": {"s": 2.0}}, "speed": 3.0}
    assert flatten_results_dict(nested) == {"bbox/AP": 1.0, "bbox/size/s": 2.0, "speed": 3.0}
    print_csv_format({"bbox": {"AP": 41.25, "AP50": 60.0, "AP-car": 7.0}, "speed": 3})
    lines = [record.getMessage() for record in d2_log.records if record.levelno == logging.INFO]
    assert lines[-4:] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 41.2500,60.0000",
        "copypaste: speed=3",
    ]


@pytest.mark.parametrize(("actual", "good"), [(41.0, True), (41.4, True), (41.6, False), (math.nan, False)])
def test_expected_results(actual: float, good: bool) -> None:
    cfg = get_cfg()
    assert verify_results(cfg, {})
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 41.0, 0.5]]
    if good:
        assert verify_results(cfg, {"bbox": {"AP": actual}})
    else:
        with pytest.raises(SystemExit):
            verify_results(cfg, {"bbox": {"AP": actual}})
    with pytest.raises(SystemExit):
        verify_results(cfg, {"bbox": {}})
