"""Detections in the formats of other tools."""

from __future__ import annotations

from typing import Any

from d2_ext.inference import to_coco_results, to_fiftyone, to_supervision
from d2_ext.inference.results import category_ids, class_name

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

FOUND = Instances(
    (100, 200),
    pred_boxes=Boxes(torch.tensor([[10.0, 20, 30, 60], [50, 0, 150, 50]])),
    scores=torch.tensor([0.75, 0.5]),
    pred_classes=torch.tensor([1, 0]),
)
NOTHING = FOUND[torch.zeros(2, dtype=torch.bool)]


def test_coco_results_have_corner_and_size_and_the_data_sets_ids() -> None:
    metadata = Metadata().set(thing_dataset_id_to_contiguous_id={3: 0, 7: 1})
    rows = to_coco_results(FOUND, 42, category_ids(metadata, 2))
    assert rows[0] == {"image_id": 42, "category_id": 7, "bbox": [10.0, 20.0, 20.0, 40.0], "score": 0.75}
    assert [row["category_id"] for row in to_coco_results(FOUND, 42)] == [1, 0]
    assert to_coco_results(NOTHING, 1) == []


def test_a_class_without_a_name_is_its_number() -> None:
    assert class_name(Metadata().set(thing_classes=["car"]), 0) == "car"
    assert class_name(Metadata(), 3) == "3"


def test_supervision_takes_boxes_scores_classes_and_names() -> None:
    sv = pytest.importorskip("supervision")
    detections = to_supervision(FOUND, ["car", "van"])
    assert isinstance(detections, sv.Detections)
    np.testing.assert_array_equal(detections.xyxy, FOUND.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(detections.confidence, [0.75, 0.5])
    assert detections["class_name"].tolist() == ["van", "car"]
    assert detections[detections.class_id == 0].xyxy.tolist() == [[50, 0, 150, 50]]
    drawn = sv.BoxAnnotator().annotate(np.zeros((100, 200, 3), np.uint8), detections)
    assert sv.LabelAnnotator().annotate(drawn, detections).any()
    assert len(to_supervision(NOTHING, ["car", "van"])) == 0
    assert sv.Detections.merge([to_supervision(NOTHING), detections]).xyxy.shape == (2, 4)


def test_fiftyone_takes_shares_of_the_sides() -> None:
    fo = pytest.importorskip("fiftyone")
    detections = to_fiftyone(FOUND, ["car", "van"])
    assert isinstance(detections, fo.Detections)
    assert detections.detections[0].bounding_box == [0.05, 0.2, 0.1, 0.4]
    assert detections.detections[0].label == "van"


def test_fiftyone_is_given_what_its_documentation_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is large; this holds the values without it."""

    class FakePackage:
        @staticmethod
        def Detection(**values: Any) -> dict[str, Any]:
            return values

        @staticmethod
        def Detections(**values: Any) -> dict[str, Any]:
            return values

    monkeypatch.setattr("d2_ext.inference.results._import", lambda name: FakePackage)
    (first, second) = to_fiftyone(FOUND, ["car", "van"])["detections"]
    assert first == {"label": "van", "bounding_box": pytest.approx([0.05, 0.2, 0.1, 0.4]), "confidence": 0.75}
    assert second["bounding_box"] == pytest.approx([0.25, 0.0, 0.5, 0.5])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", _missing)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_supervision(FOUND)


def _missing(name: str) -> None:
    raise ImportError(name)
