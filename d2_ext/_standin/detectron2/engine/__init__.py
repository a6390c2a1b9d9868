"""Training and inference loops, hooks, and the default trainer and predictor."""

from detectron2._missing import refuse

from .defaults import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .hooks import *  # noqa: F403
from .launch import DEFAULT_TIMEOUT, launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

# Hooks and defaults can be imported from here by name, but are not part of a star import.
__all__ = ["DEFAULT_TIMEOUT", "launch", "AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

__getattr__ = refuse(__name__, ["AutogradProfiler", "TorchProfiler"])
