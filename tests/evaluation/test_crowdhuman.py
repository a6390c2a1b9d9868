"""CrowdHuman's metric by hand, and its evaluator."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from d2_ext.config import add_d2_ext_config
from d2_ext.errors import DatasetError
from d2_ext.evaluation.build import build_evaluator
from d2_ext.evaluation.crowdhuman import CrowdHumanEvaluator
from d2_ext.evaluation.crowdhuman_metric import CrowdImage, evaluate_crowdhuman, log_average_miss_rate, match_image

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

NAME = "tests_crowdhuman"


def image(
    detections: list[tuple[list[float], float]], persons: list[list[float]], regions: list[list[float]]
) -> CrowdImage:
    return CrowdImage(
        det_boxes=np.array([box for box, _ in detections], dtype=np.float64).reshape(-1, 4),
        det_scores=np.array([score for _, score in detections], dtype=np.float64),
        gt_boxes=np.array(persons, dtype=np.float64).reshape(-1, 4),
        regions=np.array(regions, dtype=np.float64).reshape(-1, 4),
    )


A, B, REGION = [0.0, 0, 10, 20], [50.0, 0, 60, 20], [100.0, 0, 200, 100]


def test_duplicates_are_false_alarms_and_detections_in_regions_do_not_count() -> None:
    found = [(A, 0.9), ([0.0, 0, 10, 19], 0.8), ([110.0, 10, 130, 30], 0.7), ([110.0, 10, 130, 30], 0.6), (B, 0.5)]
    scores, hits = match_image(image(found, [A, B], [REGION]))
    assert scores.tolist() == [0.9, 0.8, 0.5]
    assert hits.tolist() == [1, 0, 1]


def test_a_detection_takes_the_person_it_overlaps_most() -> None:
    # IoU with the first 16/24, with the second 20/20; the first stays free for the next detection.
    near = [0.0, 4, 10, 24]
    _, hits = match_image(image([(near, 0.9), (A, 0.8)], [A, near], []))
    assert hits.tolist() == [1, 1]


def test_an_overlap_of_exactly_one_half_is_no_match() -> None:
    _, hits = match_image(image([([0.0, 0, 10, 10], 0.9)], [A], []))
    assert hits.tolist() == [0]


def test_a_person_comes_before_a_region() -> None:
    _, hits = match_image(image([(A, 0.9)], [A], [[0.0, 0, 50, 50]]))
    assert hits.tolist() == [1]


def test_the_three_figures_by_hand() -> None:
    # Best first: hit, false alarm, hit, of 4 persons in 2 images.
    first = image([(A, 0.9), ([70.0, 70, 80, 80], 0.8)], [A, B], [])
    second = image([(A, 0.7)], [A, B], [])
    result = evaluate_crowdhuman([first, second])
    # Recall 1/4, 1/4, 2/4; precision 1, 1/2, 2/3: the trapezoid between the last two, 1/4 * (1/2 + 2/3) / 2.
    assert result["AP50"] == pytest.approx(100 * 0.25 * (0.5 + 2 / 3) / 2)
    assert result["recall"] == pytest.approx(50.0)
    # FPPI 0, 1/2, 1/2: references up to 0.3162 read the second detection (missed 3/4), 0.5623 and 1 the last (1/2).
    assert result["mMR"] == pytest.approx(100 * math.exp((7 * math.log(0.75) + 2 * math.log(0.5)) / 9))


def test_a_perfect_detector_misses_nothing() -> None:
    result = evaluate_crowdhuman([image([(A, 0.9), (B, 0.8)], [A, B], [])])
    assert result["recall"] == 100
    assert result["mMR"] < 1e-6


def test_nothing_found_and_nothing_to_find() -> None:
    assert evaluate_crowdhuman([image([], [A], [])]) == {"AP50": 0.0, "mMR": 100.0, "recall": 0.0}
    assert math.isnan(evaluate_crowdhuman([image([(A, 0.9)], [], [])])["AP50"])


def test_miss_rates_are_read_at_nine_points() -> None:
    fppi = np.array([0.005, 0.01, 0.05, 0.3, 2.0])
    miss = np.array([0.9, 0.8, 0.6, 0.4, 0.1])
    # 0.01 -> 0.8; 0.0178, 0.0316 -> 0.6; 0.0562 to 0.1778 -> 0.4; 0.3162 to 1 -> 0.1
    expected = math.exp(sum(map(math.log, (0.8, 0.6, 0.6, 0.4, 0.4, 0.4, 0.1, 0.1, 0.1))) / 9)
    assert log_average_miss_rate(miss, fppi) == pytest.approx(expected)


@pytest.fixture
def dataset() -> Iterator[str]:
    person = {"bbox": [0, 0, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    record = {
        "file_name": "none.jpg", "image_id": "x", "width": 100, "height": 50,
        "annotations": [person], "ignore_regions": [[60, 0, 40, 50]],
    }  # fmt: skip
    DatasetCatalog.register(NAME, lambda: [record])
    MetadataCatalog.get(NAME).set(thing_classes=["person"], evaluator_type="crowdhuman")
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def output(boxes: list[list[float]], scores: list[float]) -> list[dict[str, Instances]]:
    found = Instances((50, 100), pred_boxes=Boxes(torch.tensor(boxes)), scores=torch.tensor(scores))
    return [{"instances": found}]


def test_the_evaluator_is_chosen_by_the_metadata_and_clips_to_the_image(dataset: str, tmp_path: Path) -> None:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    evaluator = build_evaluator(cfg, dataset, str(tmp_path))
    assert isinstance(evaluator, CrowdHumanEvaluator)
    evaluator.reset()
    # The first reaches beyond the image on the left: clipped it is the person. The second lies in the region.
    evaluator.process([{"image_id": "x"}], output([[-30.0, -9, 10, 20], [70.0, 10, 90, 30]], [0.9, 0.8]))
    result = evaluator.evaluate()["crowdhuman"]
    assert result["recall"] == 100
    assert json.loads((tmp_path / "crowdhuman_metrics.json").read_text()) == result


def test_predictions_for_unknown_images_are_refused(dataset: str) -> None:
    evaluator = CrowdHumanEvaluator(dataset)
    evaluator.process([{"image_id": "y"}], output([[0.0, 0, 1, 1]], [0.5]))
    with pytest.raises(DatasetError, match="image_id 'y'"):
        evaluator.evaluate()


def test_no_predictions_give_no_result(dataset: str) -> None:
    assert CrowdHumanEvaluator(dataset).evaluate() == {}
