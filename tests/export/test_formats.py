"""Exported files in their own runtimes, at other sizes and batches than they were recorded with."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError, ExportError
from d2_ext.export import (
    SUFFIXES,
    Comparison,
    ExportableDetector,
    compare,
    convert_onnx,
    describe,
    eager_runtime,
    export_file,
    load_runtime,
    read_metadata,
)
from d2_ext.export.formats import OPSET, count_operators, write_openvino
from d2_ext.export.metadata import METADATA_KEYS
from d2_ext.export.quantize import quantize
from d2_ext.export.runtimes import Runtime, openvino_core
from d2_ext.export.sparse_towers import gathered_maps
from d2_ext.export.suppression import suppress

import numpy as np
import pytest
import torch

from helpers.export_models import NUM_CLASSES, noise, tiny_config, tiny_model
from helpers.scripts import run_python

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# Every meta-architecture; FCOS's sparse head stands for the gathered rows of ONNX, DeFCN's for the masked maps.
ARCHITECTURES = ("fcos", "defcn", "retinanet", "retinanet_ceasc", "gfl", "gfl_ceasc", "fcos_sparse", "defcn_sparse")
SHAPES = [(1, 3, 64, 96), (3, 3, 90, 124), (2, 3, 200, 44)]  # recorded with (2, 3, 288, 352)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("exported")
    _written.cache_clear()
    opened.cache_clear()


def written(folder: Path, name: str, kind: str = "onnx", weights: str = "float32") -> Path:
    """An exported tiny model; each is made once."""
    return _written(folder, name, kind, weights)


@functools.cache
def _written(folder: Path, name: str, kind: str, weights: str) -> Path:
    model = tiny_model(name)
    options: dict[str, Any] = {"tower_pass": gathered_maps} if (name, kind) == ("fcos_sparse", "onnx") else {}
    metadata = describe(
        tiny_config(name), model, class_names=["car"], input_format="BGR", input_dtype="uint8", weights=weights
    )
    path = folder / f"{name}_{weights}{SUFFIXES[kind]}"
    if kind == "torch" or (kind, weights) == ("onnx", "float32"):
        export_file(ExportableDetector(model, **options), path, kind, metadata)
    else:  # what export_file does after the same first step, which takes longest
        calibration = [noise(1, 3, 96, 128, seed=seed).numpy() for seed in range(3)]
        convert_onnx(written(folder, name), path, kind, metadata, calibration=calibration)
    return path


@functools.cache
def opened(path: Path) -> Runtime:
    return load_runtime(path, threads=1, trusted=True)


def compared(path: Path, name: str, shape: tuple[int, ...]) -> Comparison:
    model, images = tiny_model(name), noise(*shape).numpy()
    limits = {"score_thresh": model.test_score_thresh, "max_detections": model.max_detections_per_image}
    return compare([eager_runtime(model)(images)], [opened(path)(images)], **limits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_detects_what_the_model_does_at_any_size_and_batch(folder: Path, name: str) -> None:
    path = written(folder, name)
    for shape in SHAPES:
        found = compared(path, name, shape)
        assert found.images == shape[0], "the case is meant to have detections in every image"
        assert found.unmatched == 0
        assert found.max_box_diff < 2e-3
        assert found.max_score_diff < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_image_of_one_row_runs(folder: Path, name: str) -> None:
    found = opened(written(folder, name))(noise(1, 3, 1, 50).numpy())
    assert np.isfinite(found.boxes).all()
    assert found.boxes.shape == (len(found.scores), 4)
    assert (found.boxes[:, 3] <= 1).all()


def test_images_without_detections_stay_empty(folder: Path) -> None:
    images = noise(2, 3, 64, 96).numpy()
    assert len(eager_runtime(tiny_model("fcos_silent"))(images).scores) == 0
    found = opened(written(folder, "fcos_silent"))(images)
    assert [column.shape for column in found] == [(0, 4), (0,), (0,), (0,)]


def test_only_detectors_with_nms_have_it_in_the_graph(folder: Path) -> None:
    assert "NonMaxSuppression" not in count_operators(written(folder, "defcn"))
    assert count_operators(written(folder, "fcos"))["NonMaxSuppression"] == 1


def test_the_file_tells_nothing_of_the_machine_it_was_written_on(folder: Path) -> None:
    content = written(folder, "fcos").read_bytes()
    assert str(Path(__file__).resolve().parents[2]).encode() not in content
    assert b"site-packages" not in content


def test_the_graph_has_nothing_but_onnx_operators_and_free_sizes(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("fcos", "retinanet_ceasc", "fcos_sparse"):
        model = onnx.load(written(folder, name))
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert len(model.functions) == 0
        sizes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        assert sizes == ["batch", 3, "height", "width"]


def test_towers_that_gather_have_no_masked_convolutions(folder: Path) -> None:
    gathered, dense = count_operators(written(folder, "fcos_sparse")), count_operators(written(folder, "fcos"))
    # Per level one convolution for both masks and the point-wise one of each tower; two of the backbone.
    assert gathered["Conv"] == 2 * 3 + 2
    assert dense["Conv"] == 2 * 5 + 2


@pytest.mark.parametrize("kind", ["onnx", "torch", "openvino"])
def test_every_format_says_what_it_is(folder: Path, kind: str) -> None:
    pytest.importorskip("openvino" if kind == "openvino" else "onnx")
    metadata = read_metadata(written(folder, "fcos", kind))
    assert set(metadata) == set(METADATA_KEYS)
    assert metadata["class_names"] == ["car", "1", "2"]
    assert len(metadata["class_names"]) == NUM_CLASSES
    assert metadata["score_thresh"] == 0.05
    assert metadata["input_format"] == "BGR"
    assert metadata["meta_architecture"] == "FCOS"


# A .pt2 holds masked maps, as DeFCN's sparse head shows; FCOS's would add ten seconds.
@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in ARCHITECTURES for k in ("torch", "openvino") if (n, k) != ("fcos_sparse", "torch")],
)
def test_the_other_formats_detect_the_same_at_any_size_and_batch(folder: Path, name: str, kind: str) -> None:
    pytest.importorskip("openvino" if kind == "openvino" else "torch")
    path = written(folder, name, kind)
    for shape in SHAPES:
        found = compared(path, name, shape)
        assert found.images == shape[0], "the case is meant to have detections in every image"
        assert found.matched == found.detections
        assert found.unmatched == 0
        assert found.max_box_diff < 2e-3
        assert found.max_score_diff < 1e-5


@pytest.mark.parametrize(("thresh", "kept"), [(0.5, 2), (float(np.nextafter(np.float32(0.5), np.float32(0))), 1)])
def test_openvino_keeps_overlaps_of_exactly_the_threshold_as_torch_does(
    tmp_path: Path, thresh: float, kept: int
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    boxes = torch.tensor([[[0.0, 0.0, 24.0, 8.0], [8.0, 0.0, 32.0, 8.0]]])  # IoU 128 / 256
    scores = torch.tensor([[[0.9, 0.8]]])
    assert int((suppress(boxes, scores, thresh, 2) > 0).sum()) == kept
    constants = {"limit": np.array([2]), "thresh": np.array([thresh], np.float32), "lowest": np.zeros(1, np.float32)}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NonMaxSuppression", ["boxes", "scores", *constants], ["index"])],
        "nms",
        [
            onnx.helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, ["n", "p", 4]),
            onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", "k", "p"]),
        ],
        [onnx.helper.make_tensor_value_info("index", onnx.TensorProto.INT64, ["d", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), tmp_path / "nms.onnx")
    write_openvino(tmp_path / "nms.onnx", tmp_path / "nms.xml", {}, half=False)
    compiled = openvino_core().compile_model(str(tmp_path / "nms.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert len(compiled({"boxes": boxes.numpy(), "scores": scores.numpy()})["index"]) == kept


def test_half_weights_save_two_bytes_each_and_detect_the_same_objects(folder: Path) -> None:
    half, full = written(folder, "fcos", "onnx", "float16"), written(folder, "fcos")
    weights = sum(x.numel() for x in tiny_model("fcos").parameters() if x.dim() > 1)
    assert full.stat().st_size - half.stat().st_size > 0.95 * 2 * weights  # 2 bytes of each; the graph itself stays
    assert compared(half, "fcos", (1, 3, 64, 96)).agreement > 0.9


def test_eight_bits_are_in_the_towers_only(folder: Path) -> None:
    path = written(folder, "fcos", "onnx", "int8")
    counts = count_operators(path)
    # Quantised are the weights of 2 convolutions of the backbone and 2 of the towers, not those of the predictors.
    assert counts["DequantizeLinear"] > counts["QuantizeLinear"] > 0
    assert compared(path, "fcos", (1, 3, 64, 96)).agreement > 0.7


def test_openvino_takes_eight_bits(folder: Path) -> None:
    pytest.importorskip("openvino")
    assert compared(written(folder, "fcos", "openvino", "int8"), "fcos", (1, 3, 64, 96)).agreement > 0.7


SIGNAL_AFTER_TWO_RUNTIMES = """
import gc, signal, subprocess, sys
from d2_ext.export.runtimes import load_runtime

first, second = load_runtime(sys.argv[1]), load_runtime(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
subprocess.run([sys.executable, "-c", ""], check=True)
"""


def test_a_process_survives_signals_after_two_openvino_models_went_in_the_order_they_came(folder: Path) -> None:
    pytest.importorskip("openvino")
    done = run_python("-c", SIGNAL_AFTER_TWO_RUNTIMES, written(folder, "fcos", "openvino"))
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_what_is_no_exported_file_is_refused(folder: Path) -> None:
    with pytest.raises(ExportError, match="no exported file"):
        load_runtime(folder / "none.onnx")
    with pytest.raises(ConfigError, match=r"ends with one of \.onnx, \.pt2, \.xml"):
        load_runtime(folder / "model.pth")
    for suffix in SUFFIXES.values():
        if suffix == ".xml":
            pytest.importorskip("openvino")
        broken = folder / f"broken{suffix}"
        broken.write_bytes(b"no model")
        with pytest.raises(ExportError, match="cannot"):
            load_runtime(broken, trusted=True)


def test_eight_bits_need_images(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--calibration"):
        quantize(written(folder, "fcos"), folder / "q.onnx", [])
