"""Exported files in their own runtimes, all as one kind of function: images in, detections out.

Files are checked before a runtime opens them, see ``checks.py``. The optional packages are imported where they are
needed. Letters: N images, D detections.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from d2_ext.errors import ConfigError, ExportError, install_hint
from d2_ext.export.checks import MAX_FILE_BYTES, archive_texts, check_names, check_onnx, check_openvino
from d2_ext.export.metadata import INPUT_NAME, METADATA_KEYS, METADATA_NODE, OUTPUT_NAMES, parse_metadata

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}


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
        name = package.partition(".")[0]
        hint = "Install it with: pip install openvino" if name == "openvino" else install_hint("export")
        raise ConfigError(f"{purpose} needs the package {name}, which is not installed ({error}). {hint}") from error


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


def load_runtime(path: str | Path, *, threads: int = 0, precision: str = "f32", trusted: bool = False) -> Runtime:
    """Open an exported file in the runtime of its format, after a check of what it holds.

    Args:
        path: ``.onnx``, ``.pt2`` or ``.xml``.
        threads: of the CPU; 0 = the runtime's choice. torch has its own global setting.
        precision: of OpenVINO's computation: ``"f32"``, or ``"bf16"`` where the CPU has it.
        trusted: you made the file, or trust whoever did. Needed for ``.pt2``, from which torch can run code.

    Returns:
        A function from images (N, 3, H, W) in the input type of the file to detections. It raises ExportError if the
        runtime fails, or gives something other than detections.

    Raises:
        ConfigError: unknown kind of file, or its runtime is not installed.
        ExportError: the file is refused, or the runtime cannot read it.
    """
    path = Path(path)
    openers = {".onnx": _open_onnx, ".pt2": _open_torch, ".xml": _open_openvino}
    _check_there(path)
    if path.suffix == ".pt2" and not trusted:
        raise ExportError(
            f"{path} was not opened: torch.export.load can run code of a .pt2 (pickles and expressions in it). If you "
            "made the file or trust whoever did, say so with trusted=True; else ask for an .onnx."
        )
    try:
        runtime = openers[path.suffix](path, threads, precision)
    except (ConfigError, ExportError):
        raise
    except Exception as error:  # the runtimes' exceptions share no base class; damaged files raise many others
        raise ExportError(f"{path} cannot be opened: {_first_line(error)}") from error

    def run(images: NDArray[Any]) -> Detections:
        try:
            found = runtime(images)
        except Exception as error:  # as above
            what = f"images {images.shape} of {images.dtype}"
            raise ExportError(f"{path} failed on {what}: {_first_line(error)}") from error
        shapes = [np.shape(column) for column in found]
        if shapes[0] != (*shapes[1], 4) or len(shapes[1]) != 1 or shapes[2:] != shapes[1:2] * 2:
            given = ", ".join(f"{name} {shape}" for name, shape in zip(OUTPUT_NAMES, shapes))
            raise ExportError(f"{path} gave {given}; expected (D, 4) boxes, and (D,) of the others.")
        return found

    return run


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_there(path: Path) -> None:
    if path.suffix not in SUFFIXES.values():
        raise ConfigError(f"{path}: expected a file that ends with one of {', '.join(SUFFIXES.values())}.")
    if not path.is_file():
        raise ExportError(f"There is no exported file {path.resolve()}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ExportError(f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read.")


def _read_onnx(path: Path) -> tuple[bytes, Any]:
    """The bytes of an ONNX file and what they mean, checked."""
    content = path.read_bytes()
    try:
        model = need("onnx", "Reading an ONNX file").load_model_from_string(content)
    except ConfigError:
        raise
    except Exception as error:  # of protobuf, by its version
        raise ExportError(f"{path} cannot be read: it is no ONNX file ({_first_line(error)}).") from error
    check_onnx(model, str(path))
    return content, model


def _open_onnx(path: Path, threads: int, precision: str) -> Runtime:
    ort = need("onnxruntime", "Running an ONNX file")
    content, _ = _read_onnx(path)  # what was checked is what is opened
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: Detections(*session.run(list(OUTPUT_NAMES), {INPUT_NAME: images}))


def _open_torch(path: Path, threads: int, precision: str) -> Runtime:
    program = torch.export.load(str(path)).module()

    def run(images: NDArray[Any]) -> Detections:
        with torch.no_grad():
            return Detections(*(x.numpy() for x in program(torch.from_numpy(images))))

    return run


def _read_openvino(path: Path) -> Any:
    core = openvino_core()
    check_openvino(path)
    model = core.read_model(str(path))
    check_names([x.any_name for x in model.inputs], [x.any_name for x in model.outputs], str(path))
    return model


def _open_openvino(path: Path, threads: int, precision: str) -> Runtime:
    settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino_core().compile_model(_read_openvino(path), "CPU", settings)

    def run(images: NDArray[Any]) -> Detections:
        results = compiled({INPUT_NAME: images})
        boxes, scores, classes, image = (results[name].copy() for name in OUTPUT_NAMES)
        return Detections(boxes, scores, classes.astype(np.int64), image.astype(np.int64))

    return run


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What an exported file says about itself; the keys are those of ``metadata.py``. Nothing of the file is run.

    Raises:
        ConfigError: unknown kind of file, or its package is not installed.
        ExportError: it cannot be read, or holds no such data.
    """
    path = Path(path)
    _check_there(path)
    if path.suffix == ".onnx":
        texts = {entry.key: entry.value for entry in _read_onnx(path)[1].metadata_props}
    elif path.suffix == ".pt2":
        texts = archive_texts(path)
    else:
        try:
            model = _read_openvino(path)
            there = [key for key in METADATA_KEYS if model.has_rt_info([METADATA_NODE, key])]
            texts = {key: str(model.get_rt_info([METADATA_NODE, key]).value) for key in there}
        except (ConfigError, ExportError):
            raise
        except Exception as error:  # OpenVINO's exceptions have no public base class
            raise ExportError(f"{path} cannot be read: {_first_line(error)}") from error
    return parse_metadata(texts, str(path))


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
