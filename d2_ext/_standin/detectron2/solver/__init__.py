"""Optimizers and learning-rate schedules."""

from detectron2._missing import refuse

from .build import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__all__ = [
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
    "LRMultiplier",
    "LRScheduler",
    "WarmupParamScheduler",
]

# Deprecated in favour of LRMultiplier with a WarmupParamScheduler.
__getattr__ = refuse(__name__, ["WarmupCosineLR", "WarmupMultiStepLR"])
