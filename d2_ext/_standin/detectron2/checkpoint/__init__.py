"""Saving and loading of models and of the state of a training run."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from . import catalog  # registers catalog://
from .detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "PeriodicCheckpointer", "DetectionCheckpointer"]
