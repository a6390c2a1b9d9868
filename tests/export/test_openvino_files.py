"""OpenVINO files in their runtime, at other sizes and batches than they were recorded with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from d2_ext.export.formats import OPSET, write_openvino
from d2_ext.export.runtimes import openvino_core
from d2_ext.export.suppression import suppress

import numpy as np
import pytest
import torch

from helpers.exported_files import (
    ARCHITECTURES,
    LONG_ARCHITECTURES,
    ExportedFiles,
    architectures,
    assert_detects_the_same,
    compared,
)
from helpers.forked import run_script

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
# Found, not imported: that takes a second, and every process of a parallel run collects every file.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.mark.parametrize("name", architectures(*ARCHITECTURES, *LONG_ARCHITECTURES))
def test_it_detects_what_the_model_does_at_any_size_and_batch(exported: ExportedFiles, name: str) -> None:
    assert_detects_the_same(exported.path(name, "openvino"), name)


@pytest.mark.parametrize(("thresh", "kept"), [(0.5, 2), (float(np.nextafter(np.float32(0.5), np.float32(0))), 1)])
def test_it_keeps_overlaps_of_exactly_the_threshold_as_torch_does(tmp_path: Path, thresh: float, kept: int) -> None:
    onnx = pytest.importorskip("onnx")
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


def test_it_takes_eight_bits(exported: ExportedFiles) -> None:
    assert compared(exported.path("fcos", "openvino", "int8"), "fcos", (1, 3, 64, 96)).agreement > 0.7


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


def test_a_process_survives_signals_after_two_openvino_models_went_in_the_order_they_came(
    exported: ExportedFiles, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SIGNAL_AFTER_TWO_RUNTIMES)
    done = run_script(tmp_path / "script.py", exported.path("fcos", "openvino"), cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "handled")
