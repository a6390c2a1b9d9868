"""ONNX files in onnxruntime, at other sizes and batches than they were recorded with; what is in their graphs."""

from __future__ import annotations

from pathlib import Path

from d2_ext.errors import ConfigError
from d2_ext.export import eager_runtime
from d2_ext.export.formats import count_operators
from d2_ext.export.quantize import quantize

import numpy as np
import pytest

from helpers.export_models import noise, tiny_model
from helpers.exported_files import (
    ARCHITECTURES,
    LONG_ARCHITECTURES,
    ExportedFiles,
    architectures,
    assert_detects_the_same,
    compared,
    opened,
)

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", architectures(*ARCHITECTURES, *LONG_ARCHITECTURES))
def test_it_detects_what_the_model_does_at_any_size_and_batch(exported: ExportedFiles, name: str) -> None:
    assert_detects_the_same(exported.path(name), name)


@pytest.mark.parametrize("name", architectures(*ARCHITECTURES, *LONG_ARCHITECTURES))
def test_an_image_of_one_row_runs(exported: ExportedFiles, name: str) -> None:
    found = opened(exported.path(name))(noise(1, 3, 1, 50).numpy())
    assert np.isfinite(found.boxes).all()
    assert found.boxes.shape == (len(found.scores), 4)
    assert (found.boxes[:, 3] <= 1).all()


def test_images_without_detections_stay_empty(exported: ExportedFiles) -> None:
    images = np.zeros((2, 3, 64, 96), np.uint8)  # in which "gfl" stays below its threshold
    assert len(eager_runtime(tiny_model("gfl"))(images).scores) == 0
    found = opened(exported.path("gfl"))(images)
    assert [column.shape for column in found] == [(0, 4), (0,), (0,), (0,)]


def test_only_detectors_with_nms_have_it_in_the_graph(exported: ExportedFiles) -> None:
    assert "NonMaxSuppression" not in count_operators(exported.path("defcn"))
    assert count_operators(exported.path("fcos"))["NonMaxSuppression"] == 1


def test_the_file_tells_nothing_of_the_machine_it_was_written_on(exported: ExportedFiles) -> None:
    content = exported.path("fcos").read_bytes()
    assert str(Path(__file__).resolve().parents[2]).encode() not in content
    assert b"site-packages" not in content


def test_the_graph_has_nothing_but_onnx_operators_and_free_sizes(exported: ExportedFiles) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("fcos", "retinanet_ceasc", "fcos_sparse"):
        model = onnx.load(exported.path(name))
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert len(model.functions) == 0
        sizes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        assert sizes == ["batch", 3, "height", "width"]


def test_towers_that_gather_have_no_masked_convolutions(exported: ExportedFiles) -> None:
    gathered, dense = count_operators(exported.path("fcos_sparse")), count_operators(exported.path("fcos"))
    # Two of the backbone. Masks, point-wise maps, layers and predictions are products of rows.
    assert gathered["Conv"] == 2
    assert dense["Conv"] == 2 * 5 + 2


def test_half_weights_save_two_bytes_each_and_detect_the_same_objects(exported: ExportedFiles) -> None:
    half, full = exported.path("fcos", "onnx", "float16"), exported.path("fcos")
    weights = sum(x.numel() for x in tiny_model("fcos").parameters() if x.dim() > 1)
    assert full.stat().st_size - half.stat().st_size > 0.95 * 2 * weights  # 2 bytes of each; the graph itself stays
    assert compared(half, "fcos", (1, 3, 64, 96)).agreement > 0.9


def test_eight_bits_are_in_the_towers_only(exported: ExportedFiles) -> None:
    path = exported.path("fcos", "onnx", "int8")
    counts = count_operators(path)
    # Quantised are the weights of 2 convolutions of the backbone and 2 of the towers, not those of the predictors.
    assert counts["DequantizeLinear"] > counts["QuantizeLinear"] > 0
    assert compared(path, "fcos", (1, 3, 64, 96)).agreement > 0.7


def test_eight_bits_need_images(exported: ExportedFiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--calibration"):
        quantize(exported.path("fcos"), tmp_path / "q.onnx", [])
