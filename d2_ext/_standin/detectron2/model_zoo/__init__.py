"""Addresses of the published RetinaNet weights. The zoo's config files come with the real Detectron2 only."""

from __future__ import annotations

from typing import NoReturn

from detectron2._missing import INSTALL_PAGE, refuse

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

_ZOO = "https://dl.fbaipublicfiles.com/detectron2"
_CHECKPOINTS = {
    "COCO-Detection/retinanet_R_50_FPN_1x": "190397773/model_final_bfca0b.pkl",
    "COCO-Detection/retinanet_R_50_FPN_3x": "190397829/model_final_5bd44e.pkl",
    "COCO-Detection/retinanet_R_101_FPN_3x": "190397697/model_final_971ab9.pkl",
}

__getattr__ = refuse(__name__, "")


def get_checkpoint_url(config_path: str) -> str:
    """The address of the weights of a config such as ``COCO-Detection/retinanet_R_50_FPN_3x.yaml``; or RuntimeError."""
    name = config_path.removesuffix(".yaml")
    if name not in _CHECKPOINTS:
        raise RuntimeError(f"Weights of {config_path!r} are not available here; known are {', '.join(_CHECKPOINTS)}.")
    return f"{_ZOO}/{name}/{_CHECKPOINTS[name]}"


def get_config_file(config_path: str, *args: object, **kwargs: object) -> NoReturn:
    """Raises ``RuntimeError``, which says what to do instead."""
    raise RuntimeError(
        f"{config_path!r}: there are no config files of the model zoo in the stand-in for Detectron2 that comes with "
        f"d2_ext. Write one of your own, or install Detectron2 as {INSTALL_PAGE} says."
    )


get = get_config = get_config_file
