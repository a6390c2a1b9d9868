"""Checkpoints from strangers: read without running what they contain."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from d2_ext.checkpoint.torchvision import is_torchvision_resnet, trunk_name
from d2_ext.errors import CheckpointError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

TRUNK_PREFIXES = ("backbone.bottom_up.", "backbone.", "")  # where a ResNet's names may lie in a model
# What a pickled array needs to come back; numpy moved the modules between versions 1 and 2.
_ARRAY_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_ARRAY_NAMES = ("ndarray", "dtype", "_reconstruct", "scalar")
_OTHER_GLOBALS = {("collections", "OrderedDict"), ("_codecs", "encode")}


class SafeCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that never executes anything from a file, with either Detectron2.

    ``.pth`` files are read with torch's ``weights_only`` reader; ``.pkl`` files of the model zoo may hold arrays,
    numbers, strings and containers only. A file of torchvision's ResNet gets the names of Detectron2's, if that is
    what the model has.

    Attributes:
        class_names: saved in every file, so that a checkpoint alone is enough to name what a detector finds.
    """

    class_names: Sequence[str] = ()

    def save(self, name: str, **kwargs: Any) -> None:
        """Save as ``DetectionCheckpointer`` does, with ``class_names`` if there are any."""
        names = {"class_names": [str(n) for n in self.class_names]} if self.class_names else {}
        super().save(name, **names, **kwargs)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or URL as ``DetectionCheckpointer`` does.

        Raises:
            CheckpointError: if there is no such file, or it cannot be fetched, or is not safe or damaged.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise CheckpointError(
                f"There is no checkpoint {os.path.abspath(path)}. Give MODEL.WEIGHTS the path of a .pth or .pkl file, "
                'or "" to start from random weights.'
            )
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:
            if "://" not in path:
                raise
            raise CheckpointError(
                f"MODEL.WEIGHTS {path} could not be fetched ({error}). Without network, get the file elsewhere and "
                'give its path: MODEL.WEIGHTS path/to/file; or "" to start from random weights.'
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with PathManager.open(filename, "rb") as f:
                _check_pickle(f, filename)
        elif filename.endswith(".pyth"):
            _load_weights_only(filename)
        return super()._load_file(filename)

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return _load_weights_only(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        checkpoint["model"] = _with_our_names(checkpoint["model"], self.model.state_dict().keys())
        return super()._load_model(checkpoint)


def read_checkpoint(filename: str) -> dict[str, Any]:
    """Read a local ``.pth`` or ``.pkl`` file without running code from it.

    Raises:
        CheckpointError: if it is damaged, or holds something other than arrays and plain values.
    """
    if not filename.endswith(".pkl"):
        return _load_weights_only(filename)
    with PathManager.open(filename, "rb") as file:
        return _check_pickle(file, filename)


def _with_our_names(tensors: Mapping[str, Any], wanted: Collection[str]) -> Mapping[str, Any]:
    """Rename the weights of torchvision's ResNet where the model has Detectron2's; its classifier is left out."""
    prefix = next((p for p in TRUNK_PREFIXES if f"{p}stem.conv1.weight" in wanted), None)
    if prefix is None or not is_torchvision_resnet(tensors):
        return tensors
    renamed = {prefix + trunk_name(key): value for key, value in tensors.items()}
    kept = {key: value for key, value in renamed.items() if key in wanted}
    logger.info("Weights of torchvision's ResNet: %d of %d are used, under Detectron2's names", len(kept), len(renamed))
    return kept


def _load_weights_only(filename: str) -> dict[str, Any]:
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:  # torch raises all three for broken files
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: it is damaged, or holds something other than tensors and plain "
            f"values, which could run code ({reason}). Save it again as a state_dict."
        ) from error


def _check_pickle(file: Any, filename: str) -> Any:
    """What a pickle of arrays and plain values holds."""

    class ArraysOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module in _ARRAY_MODULES and name in _ARRAY_NAMES) or (module, name) in _OTHER_GLOBALS:
                return super().find_class(module, name)
            raise CheckpointError(
                f"Checkpoint {filename} was not loaded: it asks for {module}.{name}, and loading that could run code. "
                "Expected arrays and plain values only. Get the file from a source you trust, as a .pth state_dict."
            )

    try:
        return ArraysOnly(file, encoding="latin1").load()
    except (EOFError, pickle.UnpicklingError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"Checkpoint {filename} is not a readable pickle: {error}. Get the file again."
        ) from error
