"""Writing a detector as ONNX, as a program of ``torch.export``, and as OpenVINO's intermediate representation."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.errors import ExportError
from d2_ext.export.detector import ExportableDetector
from d2_ext.export.metadata import INPUT_NAME, METADATA_FILE, METADATA_NODE, OUTPUT_NAMES
from d2_ext.export.quantize import quantize
from d2_ext.export.runtimes import need
from d2_ext.export.suppression import suppress, suppress_operator

import numpy as np
import torch
from numpy.typing import NDArray

OPSET = 20
IOU_INPUT = 3  # of NonMaxSuppression: its threshold
# Of the example: two images, so that the batch stays free; large enough that no level of it is a single cell.
EXAMPLE_SHAPE = (2, 3, 288, 352)
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}

Say = Callable[[str], object]  # gets a few words when a step begins


def _in_silence(step: str) -> None:
    """Nobody wants to know."""


def trace(detector: ExportableDetector, input_dtype: str = "uint8") -> torch.export.ExportedProgram:
    """Record a detector as a graph in which batch, height and width are free.

    Args:
        detector: whose ``suppress`` decides for which format the graph is.
        input_dtype: a key of ``DTYPES``.

    Raises:
        ExportError: it holds something that no graph can.
    """
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(EXAMPLE_SHAPE, dtype=DTYPES[input_dtype])
    try:
        # Without oneDNN, whose own operators exist nowhere else.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
                return torch.export.export(
                    detector.eval(), (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},), strict=False
                )
    except Exception as error:  # what stops it depends on torch's version
        raise ExportError(f"torch.export cannot record the model: {_first_line(error)}") from error


def write_torch(detector: ExportableDetector, path: Path, metadata: Mapping[str, Any], input_dtype: str) -> None:
    """Write a ``.pt2`` file, which ``torch.export.load`` reads where torchvision is imported.

    Raises:
        ExportError: the model cannot be exported.
        OSError: the file cannot be written.
    """
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    program = trace(detector.suppressing(suppress), input_dtype)
    content = io.BytesIO()  # torch's own writer of files ends the process on a full disk
    torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(texts)})
    path.write_bytes(content.getbuffer())


def write_onnx(detector: ExportableDetector, path: Path, metadata: Mapping[str, Any], input_dtype: str) -> None:
    """Write an ``.onnx`` file of ONNX's own operators, with its weights inside.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
        ExportError: the model cannot be exported.
    """
    onnx = need("onnx", "Export to ONNX")
    need("onnxscript", "Export to ONNX")
    program = trace(detector.suppressing(suppress_operator), input_dtype)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=list(OUTPUT_NAMES),
                custom_translation_table={torch.ops.d2_ext.suppress.default: _suppress_in_onnx()},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # what stops it depends on torch's version
        raise ExportError(f"torch.onnx.export cannot translate the model: {_first_line(error)}") from error
    assert result is not None, "torch.onnx.export with dynamo=True gives a program"
    proto = result.model_proto
    graph = proto.graph
    # The free dimensions of inputs and outputs get names that a user knows; value_info holds the old ones.
    shape = graph.input[0].type.tensor_type.shape.dim
    for position, name in ((0, "batch"), (2, "height"), (3, "width")):
        shape[position].dim_param = name
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "detections"
    del graph.value_info[:]
    # What the exporter notes about every node goes: its source lines, with paths of this machine.
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    for node in graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))
    set_metadata(path, metadata)


def set_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replace the metadata of an ONNX file, each value as json."""
    onnx = need("onnx", "Export to ONNX")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, str(path))


def _suppress_in_onnx() -> Any:
    """The translation of ``suppress_operator``."""
    from onnxscript import opset20

    op: Any = opset20  # its annotations say that a constant is of any type, which no operator takes

    def translate(boxes: Any, scores: Any, iou_thresh: float, limit: int) -> Any:
        # ONNX suppresses per image and class, too; it takes XYXY for YXYX, which has the same overlaps.
        index = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou_thresh]),
            op.Constant(value_floats=[0.0]),
        )
        nothing = op.Expand(op.Constant(value_floats=[0.0]), op.Shape(scores))
        return op.ScatterND(nothing, index, op.GatherND(scores, index))

    return translate


def store_weights_in_half(path: Path) -> None:
    """Store the weights of an ONNX file as float16, to be computed with as float32: half the file, the same speed."""
    onnx = need("onnx", "Export to ONNX")
    model = onnx.load(str(path))
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        values = onnx.numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    onnx.save(model, str(path))


def write_openvino(onnx_path: Path, path: Path, metadata: Mapping[str, Any], *, half: bool) -> None:
    """Convert an ONNX file to OpenVINO's ``.xml`` with its ``.bin`` beside.

    Args:
        onnx_path: float32 or quantized.
        path: of the ``.xml``.
        metadata: written into it.
        half: store the weights as float16.

    Raises:
        ConfigError: openvino is not installed.
        ExportError: OpenVINO cannot convert the file, or write its own.
    """
    openvino = need("openvino", "Export to OpenVINO")
    try:
        model = openvino.convert_model(str(onnx_path))
    except Exception as error:  # its exceptions share no public base class
        raise ExportError(f"OpenVINO cannot convert {onnx_path}: {_first_line(error)}") from error
    _fit_suppression(model)
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), [METADATA_NODE, key])
    try:
        openvino.save_model(model, str(path), compress_to_fp16=half)
    except RuntimeError as error:  # its writer's errors are no OSErrors
        raise ExportError(f"{path.name} could not be written: {_first_line(error)}. Is there space?") from error


def _fit_suppression(model: Any) -> None:
    """Make OpenVINO's NMS that of torch and ONNX, in place.

    It suppresses from the threshold on, the others above it, so the threshold is raised by one step of float32. That
    matters: anchors at the inactive positions of sparse towers have overlaps of exactly 0.5. And it needs to know that
    boxes have four coordinates, which it does not always infer.
    """
    operators = need("openvino.opset13", "Export to OpenVINO")
    for node in model.get_ops():
        if node.get_type_name() == "NonMaxSuppression":
            boxes, source = node.input(0), node.input(IOU_INPUT)
            four = operators.constant(np.array([0, -1, 4], dtype=np.int64))
            boxes.replace_source_output(operators.reshape(boxes.get_source_output(), four, True).output(0))
            threshold = np.asarray(source.get_source_output().get_node().data, dtype=np.float32)
            source.replace_source_output(operators.constant(np.nextafter(threshold, np.float32(1))).output(0))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def count_operators(path: Path) -> dict[str, int]:
    """How often each operator stands in an ONNX file."""
    counts: dict[str, int] = {}
    for node in need("onnx", "Reading an ONNX file").load(str(path)).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def export_file(
    detector: ExportableDetector,
    path: Path,
    kind: str,
    metadata: Mapping[str, Any],
    *,
    calibration: Sequence[NDArray[Any]] = (),
    say: Say = _in_silence,
) -> None:
    """Write a detector in one of the formats.

    Args:
        detector: to be written.
        path: with the suffix of the format; OpenVINO puts a ``.bin`` beside. Other files there are left alone.
        kind: a key of ``SUFFIXES``.
        metadata: see ``describe``; ``input_dtype`` is the type of the input, and ``weights`` says how weights are
            stored.
        calibration: images for ``weights`` "int8".
        say: called with what begins, a few words.

    Raises:
        ConfigError: a package is missing.
        ExportError: the model cannot be exported.
    """
    say("recording the model's graph" if kind == "torch" else "recording the model's graph and translating it to ONNX")
    if kind == "torch":
        return write_torch(detector, path, metadata, metadata["input_dtype"])
    with _folder_beside(path) as folder:
        plain = Path(folder) / "float32.onnx"
        write_onnx(detector, plain, metadata, metadata["input_dtype"])
        convert_onnx(plain, path, kind, metadata, calibration=calibration, say=say)
    return None


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder on the disk of the result; what of it cannot be removed is no error of an export."""
    return tempfile.TemporaryDirectory(prefix=".", dir=path.parent, ignore_cleanup_errors=True)


def convert_onnx(
    source: Path,
    path: Path,
    kind: str,
    metadata: Mapping[str, Any],
    *,
    calibration: Sequence[NDArray[Any]] = (),
    say: Say = _in_silence,
) -> None:
    """Make another file from a float32 ONNX file; the arguments are those of :func:`export_file`.

    Raises:
        ConfigError: a package is missing, or there are no images to calibrate on.
        ExportError: OpenVINO cannot convert the file.
    """
    with _folder_beside(path) as folder:
        work = Path(shutil.copy(source, Path(folder) / "work.onnx"))
        if metadata["weights"] == "int8":
            say(f"rounding to 8 bits, calibrated on {len(calibration)} images")
            quantized = work.with_name("int8.onnx")
            quantize(work, quantized, calibration)
            work = quantized
        if kind == "openvino":
            say("converting to OpenVINO")
            return write_openvino(work, path, metadata, half=metadata["weights"] == "float16")
        if metadata["weights"] == "float16":
            store_weights_in_half(work)
        set_metadata(work, metadata)
        shutil.move(work, path)
    return None
