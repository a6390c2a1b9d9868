"""What becomes of each detection and object of an image."""

from __future__ import annotations

from pathlib import Path

from d2_ext.report.verdicts import confusion_matrix, judge_image

import numpy as np
import pytest

from helpers.report_scene import detection, judged, objects, registered

A, B, C = [10.0, 10, 20, 20], [60.0, 10, 20, 20], [110.0, 10, 20, 20]
IMAGE = {"annotations": [*objects((0, A), (1, B), (0, C))]}


def test_found_confused_false_and_missed_are_told_apart(tmp_path: Path) -> None:
    rows = [
        detection(1, 1, A, 0.9),  # the right class
        detection(1, 1, B, 0.8),  # of class 2
        detection(1, 2, [10.0, 60, 20, 20], 0.7),  # nothing there
        detection(1, 1, C, 0.2),  # below the threshold
    ]
    with registered(tmp_path, "coco", [IMAGE]):
        everything = judged(tmp_path, rows)
        verdict = judge_image(everything, 1, 0.3)
    assert [row["score"] for row, _ in verdict.found] == [0.9]
    assert [(row["score"], target["bbox"]) for row, target in verdict.confused] == [(0.8, B)]
    assert [row["score"] for row in verdict.false] == [0.7]
    assert [row["bbox"] for row in verdict.missed] == [C]
    assert verdict.mistakes == 3
    # 1 right of 3 detections and of 3 objects: precision and recall 1/3.
    assert verdict.f1 == pytest.approx(1 / 3)
    #        car  van  missed
    assert confusion_matrix(everything, [verdict]).tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_an_object_goes_to_its_own_class_before_a_better_score_of_another(tmp_path: Path) -> None:
    with registered(tmp_path, "coco", [IMAGE]):
        verdict = judge_image(judged(tmp_path, [detection(1, 2, A, 0.9), detection(1, 1, A, 0.4)]), 1, 0.3)
    assert [row["score"] for row, _ in verdict.found] == [0.4]
    assert [row["score"] for row in verdict.false] == [0.9]


def test_a_second_detection_of_an_object_is_false(tmp_path: Path) -> None:
    with registered(tmp_path, "coco", [IMAGE]):
        verdict = judge_image(judged(tmp_path, [detection(1, 1, A, 0.9), detection(1, 1, A, 0.8)]), 1, 0.3)
    assert len(verdict.found) == len(verdict.false) == 1


def test_every_object_and_every_judged_detection_has_one_verdict(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    boxes = np.column_stack([generator.uniform(0, 150, (60, 2)), generator.uniform(15, 50, (60, 2))]).tolist()
    image = {"annotations": objects(*((i % 2, box) for i, box in enumerate(boxes[:30])))}
    rows = [detection(1, 1 + i % 2, box, 0.4 + i / 100) for i, box in enumerate(boxes[25:])]
    with registered(tmp_path, "coco", [image | {"ignore_regions": [[0.0, 0, 60, 60]]}], coco_ignore_regions=True):
        everything = judged(tmp_path, rows)
        verdict = judge_image(everything, 1, 0.0)
    matched = len(verdict.found) + len(verdict.confused)
    assert matched + len(verdict.missed) == 30
    assert matched + len(verdict.false) + len(verdict.ignored) == len(rows)
    assert verdict.ignored
    assert confusion_matrix(everything, [verdict]).sum() == 30 + len(verdict.false)
