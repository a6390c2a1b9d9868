"""Trained detectors that come with the package.

A model is a folder of this one: ``model.safetensors`` (the weights), ``config.yaml`` (of the detector, complete) and
``README.md`` (its card: data, licence, figures, limits, the command that trained it).

Example::

    from d2_ext import model_zoo

    predictor = model_zoo.get("thermal_drone")
    (found,) = predictor(["thermal.jpg"])
    print(found.pred_boxes, found.scores, [predictor.class_names[k] for k in found.pred_classes])

``MODEL.WEIGHTS d2_ext://thermal_drone`` starts a training from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.zoo import PREFIX, list_models, model_folder
from d2_ext.inference import BatchPredictor
from d2_ext.inference.loading import detector_config

from detectron2.config import CfgNode

__all__ = ["card", "get", "get_config", "list_models"]


def get(name: str, *, device: str = "cpu", **options: Any) -> BatchPredictor:
    """A trained detector, ready to predict.

    Args:
        name: one of :func:`list_models`.
        device: e.g. "cuda".
        options: of :class:`~d2_ext.inference.BatchPredictor`, such as ``score_thresh`` and ``batch_size``.

    Raises:
        CheckpointError: for an unknown name.
    """
    return BatchPredictor(get_config(name, ("MODEL.DEVICE", device)), **options)


def get_config(name: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a model with its weights, frozen.

    Args:
        name: one of :func:`list_models`.
        overrides: keys and values in turn.

    Raises:
        CheckpointError: for an unknown name.
    """
    return detector_config(PREFIX + name, overrides=overrides)


def card(name: str) -> Path:
    """The card of a model: data, licence, figures, limits.

    Raises:
        CheckpointError: for an unknown name.
    """
    return model_folder(name) / "README.md"
