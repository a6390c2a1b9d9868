"""Addresses of the published RetinaNets; the config files of the model zoo are not part of the stand-in."""

from __future__ import annotations

from typing import Any

from detectron2._missing import INSTALL_PAGE
from torch import nn

__all__ = ["get_checkpoint_url", "get", "get_config_file", "get_config"]

_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"
_SUFFIXES = {
    "COCO-Detection/retinanet_R_50_FPN_1x": "190397773/model_final_bfca0b.pkl",
    "COCO-Detection/retinanet_R_50_FPN_3x": "190397829/model_final_5bd44e.pkl",
    "COCO-Detection/retinanet_R_101_FPN_3x": "190397697/model_final_971ab9.pkl",
}


def get_checkpoint_url(config_path: str) -> str:
    """URL of the weights that were trained with a config, e.g. ``COCO-Detection/retinanet_R_50_FPN_1x.yaml``.

    Raises:
        RuntimeError: if they are not known.
    """
    name = config_path.removesuffix(".yaml")
    if name not in _SUFFIXES:
        raise RuntimeError(f"Pretrained model for {config_path} is not available! Known: {', '.join(_SUFFIXES)}.")
    return f"{_PREFIX}{name}/{_SUFFIXES[name]}"


def get_config_file(config_path: str) -> str:
    """Always raises: write a config of your own, or install Detectron2.

    Raises:
        RuntimeError: saying so.
    """
    raise RuntimeError(
        f"{config_path}: the stand-in for Detectron2 that comes with d2_ext has no config files of the model zoo. "
        f"Write one, or install Detectron2 itself as {INSTALL_PAGE} says."
    )


def get_config(config_path: str, trained: bool = False) -> Any:
    """Always raises, like :func:`get_config_file`."""
    return get_config_file(config_path)


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Always raises, like :func:`get_config_file`."""
    return get_config(config_path, trained)
