"""Exported files in their own runtimes, all as one kind of function: images in, detections out.

The optional packages are imported where they are needed. Letters: N images, D detections.
"""

from __future__ import annotations

import functools
import importlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from d2_ext.errors import ConfigError, ExportError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

INPUT_NAME = "images"
OUTPUT_NAMES = ("boxes", "scores", "classes", "image")
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
METADATA_FILE = "d2_ext.json"  # inside a .pt2 archive
METADATA_NODE = "d2_ext"  # of an OpenVINO model's runtime info


class Detections(NamedTuple):
    """Detections of a batch.

    Attributes:
        boxes: (D, 4) XYXY px of the given images.
        scores: (D,).
        classes: (D,) int64.
        image: (D,) int64, number of the image in the batch, ascending.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    image: NDArray[np.int64]


Runtime = Callable[[NDArray[Any]], Detections]


def need(package: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs the package {package.partition('.')[0]}, which is not installed ({error}). Install it, "
            "for example with: pip install -e '.[export]'"
        ) from error


@functools.cache
def openvino_core() -> Any:
    """The one ``openvino.Core`` of this process, which lives until its end.

    Its CPU plugin replaces the stack on which signals are handled, and restores the one before when it is deleted. Of
    two that are deleted in the order in which they were made, the second restores the first one's, which is unmapped
    by then: the next signal that Python handles, such as the end of a child process, kills the process without a word.

    Raises:
        ConfigError: openvino is not installed.
    """
    return need("openvino", "Using an OpenVINO file").Core()


def load_runtime(path: str | Path, *, threads: int = 0, precision: str = "f32") -> Runtime:
    """Open an exported file in the runtime of its format.

    Args:
        path: ``.onnx``, ``.pt2`` or ``.xml``.
        threads: of the CPU; 0 = the runtime's choice. torch has its own global setting.
        precision: of OpenVINO's computation: ``"f32"``, or ``"bf16"`` where the CPU has it.

    Returns:
        A function from images (N, 3, H, W) in the input type of the file to detections.

    Raises:
        ConfigError: unknown kind of file, or its runtime is not installed.
        ExportError: the runtime cannot read the file.
    """
    path = Path(path)
    openers = {".onnx": _open_onnx, ".pt2": _open_torch, ".xml": _open_openvino}
    if path.suffix not in openers:
        raise ConfigError(f"{path}: expected a file that ends with one of {', '.join(openers)}.")
    if not path.is_file():
        raise ExportError(f"There is no exported file {path.resolve()}.")
    try:
        return openers[path.suffix](path, threads, precision)
    except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise ExportError(f"{path} cannot be opened: {str(error).splitlines()[0]}") from error


def _open_onnx(path: Path, threads: int, precision: str) -> Runtime:
    ort = need("onnxruntime", "Running an ONNX file")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no public base class
        raise ExportError(f"{path}: onnxruntime cannot open it: {str(error).splitlines()[0]}") from error
    return lambda images: Detections(*session.run(None, {INPUT_NAME: images}))


def _open_torch(path: Path, threads: int, precision: str) -> Runtime:
    program = torch.export.load(str(path)).module()

    def run(images: NDArray[Any]) -> Detections:
        with torch.no_grad():
            return Detections(*(x.numpy() for x in program(torch.from_numpy(images))))

    return run


def _open_openvino(path: Path, threads: int, precision: str) -> Runtime:
    settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino_core().compile_model(str(path), "CPU", settings)

    def run(images: NDArray[Any]) -> Detections:
        results = compiled({INPUT_NAME: images})
        boxes, scores, classes, image = (results[name].copy() for name in OUTPUT_NAMES)
        return Detections(boxes, scores, classes.astype(np.int64), image.astype(np.int64))

    return run


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What an exported file says about itself; the keys are those of ``metadata.py``.

    Raises:
        ConfigError: unknown kind of file, or its package is not installed.
        ExportError: it holds no such data.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        onnx = need("onnx", "Reading an ONNX file")
        texts = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    elif path.suffix == ".pt2":
        files = {METADATA_FILE: ""}
        torch.export.load(str(path), extra_files=files)
        texts = json.loads(files[METADATA_FILE] or "{}")
    elif path.suffix == ".xml":
        model = openvino_core().read_model(str(path))
        there = [key for key in METADATA_KEYS if model.has_rt_info([METADATA_NODE, key])]
        texts = {key: model.get_rt_info([METADATA_NODE, key]).value for key in there}
    else:
        raise ConfigError(f"{path}: expected a file that ends with one of {', '.join(SUFFIXES.values())}.")
    if "class_names" not in texts:
        raise ExportError(f"{path} holds no metadata of d2_ext. Export it with tools/export.py.")
    return {key: json.loads(value) for key, value in texts.items() if key in METADATA_KEYS}


METADATA_KEYS = (
    "d2_ext",
    "meta_architecture",
    "class_names",
    "input_format",
    "input_dtype",
    "score_thresh",
    "nms_thresh",
    "max_detections",
    "min_size",
    "max_size",
    "weights",
)


def eager_runtime(model: nn.Module, *, swap_channels: bool = False) -> Runtime:
    """The model itself as the same kind of function, by Detectron2's way of inference.

    Args:
        model: in evaluation mode.
        swap_channels: whether the images' channels are in the reverse order of the model's.
    """

    def run(images: NDArray[Any]) -> Detections:
        tensors = torch.from_numpy(images[:, ::-1].copy() if swap_channels else images)
        with torch.no_grad():
            found = [output["instances"] for output in model([{"image": x} for x in tensors])]
        return Detections(
            np.concatenate([x.pred_boxes.tensor.float().numpy() for x in found]),
            np.concatenate([x.scores.float().numpy() for x in found]),
            np.concatenate([x.pred_classes.numpy() for x in found]),
            np.repeat(np.arange(len(found)), [len(x) for x in found]),
        )

    return run
