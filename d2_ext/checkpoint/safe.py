"""Checkpoints from strangers: read without running what they contain."""

from __future__ import annotations

import pickle
from typing import Any

from d2_ext.errors import CheckpointError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

# What a pickled array needs to come back; numpy moved the modules between versions 1 and 2.
_ARRAY_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_ARRAY_NAMES = ("ndarray", "dtype", "_reconstruct", "scalar")
_OTHER_GLOBALS = {("collections", "OrderedDict"), ("_codecs", "encode")}


class SafeCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that never executes anything from a file, with either Detectron2.

    ``.pth`` files are read with torch's ``weights_only`` reader; ``.pkl`` files of the model zoo may hold arrays,
    numbers, strings and containers only.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with PathManager.open(filename, "rb") as f:
                _check_pickle(f, filename)
        elif filename.endswith(".pyth"):
            _load_weights_only(filename)
        return super()._load_file(filename)

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return _load_weights_only(filename)


def _load_weights_only(filename: str) -> dict[str, Any]:
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: it is damaged, or holds something other than tensors and plain "
            f"values, which could run code ({str(error).splitlines()[0]}). Save it again as a state_dict."
        ) from error


def _check_pickle(file: Any, filename: str) -> None:
    class ArraysOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module in _ARRAY_MODULES and name in _ARRAY_NAMES) or (module, name) in _OTHER_GLOBALS:
                return super().find_class(module, name)
            raise CheckpointError(
                f"Checkpoint {filename} was not loaded: it asks for {module}.{name}, and loading that could run code. "
                "Expected arrays and plain values only. Get the file from a source you trust, as a .pth state_dict."
            )

    try:
        ArraysOnly(file, encoding="latin1").load()
    except (EOFError, pickle.UnpicklingError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"Checkpoint {filename} is not a readable pickle: {error}. Get the file again."
        ) from error
