"""Mask recall in evaluation: by hand, over the sizes and classes of COCO's metric."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from d2_ext.evaluation import MaskRecallEvaluator
from d2_ext.modeling.meta_arch.sparsity import SeenObjects

import pytest
import torch
from detectron2.data import MetadataCatalog

from helpers.point_scenes import image

NAME = "tests_mask_recall"


@pytest.fixture
def evaluator() -> Iterator[MaskRecallEvaluator]:
    MetadataCatalog.get(NAME).set(thing_classes=["car", "van", "bus"])
    yield MaskRecallEvaluator(NAME)
    MetadataCatalog.pop(NAME)


def output(seen: list[bool], active: float) -> dict[str, SeenObjects]:
    return {"seen_objects": SeenObjects(torch.ones(len(seen), dtype=torch.bool), torch.tensor(seen).bool(), active)}


def test_the_recall_is_counted_by_class_and_by_size_in_the_files_image(
    evaluator: MaskRecallEvaluator, caplog: pytest.LogCaptureFixture
) -> None:
    # The network sees half of the file's side lengths: 16 px there are 32 px here, which is medium; 15 px are small.
    first = image([[0, 0, 16, 16], [0, 0, 15, 15], [0, 0, 50, 48]], [0, 0, 1])
    first.update(height=192, width=256)
    evaluator.process([first], [output([True, False, True], 0.25)])
    evaluator.process([image([], []), image([[0, 0, 5, 5]], [1])], [output([], 0.0), output([True], 0.05)])
    with caplog.at_level(logging.INFO):
        figures = evaluator.evaluate()["masks"]
    assert figures["recall"] == 75
    assert (figures["recall-small"], figures["recall-medium"], figures["recall-large"]) == (50, 100, 100)
    assert (figures["recall-car"], figures["recall-van"]) == (50, 100)
    assert math.isnan(figures["recall-bus"])
    assert figures["active"] == pytest.approx(10)
    assert "10.00 % of the positions are active" in caplog.text
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_dense_detectors_and_images_without_objects_have_no_recall(evaluator: MaskRecallEvaluator) -> None:
    evaluator.process([image([[0, 0, 16, 16]], [0])], [{"instances": None}])
    assert evaluator.evaluate() == {}
    evaluator.process([image([], [])], [output([], 0.5)])
    figures = evaluator.evaluate()["masks"]
    assert figures.pop("active") == 50
    assert all(map(math.isnan, figures.values()))
