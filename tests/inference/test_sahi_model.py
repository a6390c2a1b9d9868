"""SAHI around our predictor."""

from __future__ import annotations

from pathlib import Path

from d2_ext.inference import BatchPredictor

import numpy as np
import pytest
import torch

from helpers.inference_detectors import noise, small_cfg, write_weights

pytest.importorskip("sahi")

from d2_ext.inference.sahi_model import SahiDetector

from sahi.predict import get_prediction, get_sliced_prediction


@pytest.fixture
def predictor(tmp_path: Path) -> BatchPredictor:
    return BatchPredictor(write_weights(small_cfg("fcos_R18_synthetic"), tmp_path), batch_size=4)


def test_sahi_sees_what_the_predictor_sees_in_rgb(predictor: BatchPredictor) -> None:
    image = noise(64, 96)
    (expected,) = predictor([image])
    middle = expected.scores.median().item()
    expected = expected[expected.scores >= middle]
    result = get_prediction(
        np.ascontiguousarray(image[:, :, ::-1]), SahiDetector(predictor, confidence_threshold=middle)
    )
    found = result.object_prediction_list
    assert [p.category.id for p in found] == expected.pred_classes.tolist()
    assert [p.category.name for p in found] == [predictor.class_names[i] for i in expected.pred_classes.tolist()]
    torch.testing.assert_close(torch.tensor([p.bbox.to_xyxy() for p in found]), expected.pred_boxes.tensor)


def test_sahis_slices_are_shifted_into_the_image(predictor: BatchPredictor) -> None:
    image = noise(64, 180)
    options = {"slice_height": 64, "slice_width": 64, "overlap_width_ratio": 0.1, "perform_standard_pred": False}
    result = get_sliced_prediction(image, SahiDetector(predictor), verbose=0, **options)
    boxes = np.array([p.bbox.to_xyxy() for p in result.object_prediction_list])
    assert boxes[:, 2].max() > 130
    assert (boxes >= 0).all()
    assert (boxes <= [180, 64, 180, 64]).all()
