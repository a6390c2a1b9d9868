"""Where the models of the package lie: ``d2_ext://NAME`` is the file of weights of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.errors import CheckpointError, did_you_mean

from detectron2.utils.file_io import PathHandler, PathManager

__all__ = ["PREFIX", "list_models", "local_weights", "model_folder", "model_weights"]

PREFIX = "d2_ext://"
WEIGHTS_NAME = "model.safetensors"
_MODELS = Path(__file__).resolve().parents[1] / "model_zoo"


def list_models() -> list[str]:
    """Names of the trained detectors that come with the package."""
    return sorted(path.parent.name for path in _MODELS.glob(f"*/{WEIGHTS_NAME}"))


def model_folder(name: str) -> Path:
    """The folder of a model.

    Raises:
        CheckpointError: for an unknown name.
    """
    known = list_models()
    if name not in known:
        raise CheckpointError(f"There is no model {name!r} in the package. {did_you_mean(name, known)}")
    return _MODELS / name


def model_weights(name: str) -> Path:
    """The file of weights of a model.

    Raises:
        CheckpointError: for an unknown name.
    """
    return model_folder(name) / WEIGHTS_NAME


def local_weights(path: str) -> str:
    """The file behind ``d2_ext://NAME``; any other path as it is.

    Raises:
        CheckpointError: for an unknown name.
    """
    return str(model_weights(path.removeprefix(PREFIX))) if path.startswith(PREFIX) else path


class ZooHandler(PathHandler):
    """Lets Detectron2's path manager find the models of the package."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return local_weights(path)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return path.removeprefix(PREFIX) in list_models()

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(local_weights(path), mode, buffering)


PathManager.register_handler(ZooHandler(), allow_override=True)
