"""Checkpoints from strangers: read without running what they contain."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

from d2_ext.checkpoint.fit import check_fit
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
    what the model has. Weights that do not fit the model are refused, see :func:`d2_ext.checkpoint.fit.check_fit`.

    Attributes:
        whole: every weight of the model must be in the file, as for evaluation; resuming sets it.
    """

    whole = False
    _path = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or URL as ``DetectionCheckpointer`` does.

        Raises:
            CheckpointError: if there is no such file, or it cannot be fetched, or is not safe or damaged, or does not
                fit the model.
        """
        check_file(path)
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:
            if "://" not in path:
                raise
            raise CheckpointError(
                f"MODEL.WEIGHTS {path} could not be fetched ({error}). Without network, get the file elsewhere and "
                'give its path: MODEL.WEIGHTS path/to/file; or "" to start from random weights.'
            ) from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of ``save_dir`` if asked to and there is one, else ``path``."""
        self.whole = self.whole or (resume and self.has_checkpoint())
        return super().resume_or_load(path, resume=resume)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with PathManager.open(filename, "rb") as f:
                _check_content(_check_pickle(f, filename), filename)
        elif filename.endswith(".pyth"):
            _check_content(_load_weights_only(filename), filename)
        return super()._load_file(filename)

    def _torch_load(self, filename: str) -> dict[str, Any]:
        content = _load_weights_only(filename)
        _check_content(content, filename)
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        checkpoint["model"] = _with_our_names(checkpoint["model"], self.model.state_dict().keys())
        found = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if incompatible is not None:
            check_fit(self.model, incompatible, found, self._path, whole=self.whole)
        return incompatible


def check_file(path: str) -> None:
    """Check that ``MODEL.WEIGHTS`` is empty, a URL, or an existing file that is not empty.

    Raises:
        CheckpointError: it is not.
    """
    if not path or "://" in path:
        return
    file = path.partition("?")[0]
    if os.path.isdir(file):
        raise CheckpointError(
            f"MODEL.WEIGHTS {os.path.abspath(file)} is a folder. Give the path of a .pth or .pkl file, such as "
            f"{os.path.join(file, 'model_final.pth')}."
        )
    if not os.path.isfile(file):
        raise CheckpointError(
            f"There is no checkpoint {os.path.abspath(path)}. Give MODEL.WEIGHTS the path of a .pth or .pkl file, "
            'or "" to start from random weights.'
        )
    if os.path.getsize(file) == 0:
        raise CheckpointError(f"Checkpoint {os.path.abspath(file)} is empty (0 bytes). Get the file again.")


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
    _check_zip(filename)
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise whatever torch's readers happen to raise
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: it is damaged, or holds something other than tensors and plain "
            f"values, which could run code ({reason}). Save it again as a state_dict."
        ) from error


def _check_zip(filename: str) -> None:
    """Refuse a zip that would fill the memory: torch stores tensors without compression."""
    if not zipfile.is_zipfile(filename):
        return  # the form before torch 1.6, or no checkpoint
    try:
        with zipfile.ZipFile(filename) as archive:
            entries = archive.infolist()
    except Exception as error:  # of a damaged directory
        raise CheckpointError(
            f"Checkpoint {filename} is damaged ({error or type(error).__name__}). Get the file again."
        ) from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    total, size = sum(entry.file_size for entry in entries), os.path.getsize(filename)
    if packed or total > size:
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: its {size} bytes unpack to {total}, but torch writes checkpoints "
            "without compression, so this is none. Get the file from a source you trust."
        )


def _check_content(content: Any, filename: str) -> None:
    """Weights by name, at the top or below one of the keys that trainers use."""
    weights = content
    for key in ("model", "model_state", "blobs"):
        if isinstance(content, Mapping) and key in content:
            weights = content[key]
            break
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"Checkpoint {filename} holds a {type(weights).__name__}, but weights by name were expected. Save a "
            "state_dict, or a dict that holds it under 'model'."
        )
    wrong = next((k for k, v in weights.items() if not isinstance(k, str) or not hasattr(v, "shape")), None)
    if wrong is not None:
        raise CheckpointError(
            f"Checkpoint {filename} holds a {type(weights[wrong]).__name__} under {wrong!r}, but an array was "
            "expected. Save a state_dict, or a dict that holds it under 'model'."
        )


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
    except CheckpointError:
        raise
    except Exception as error:  # damaged pickles raise whatever their instructions happen to meet
        raise CheckpointError(
            f"Checkpoint {filename} is not a readable pickle: {error or type(error).__name__}. Get the file again."
        ) from error
