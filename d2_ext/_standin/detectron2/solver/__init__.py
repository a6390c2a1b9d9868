"""Optimizers and learning rates, as the config asks for them."""

from detectron2._missing import refuse

from .build import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__all__ = [
    "LRMultiplier", "LRScheduler", "WarmupParamScheduler", "build_lr_scheduler", "build_optimizer",
    "get_default_optimizer_params",
]  # fmt: skip

__getattr__ = refuse(__name__, "WarmupCosineLR WarmupMultiStepLR")
