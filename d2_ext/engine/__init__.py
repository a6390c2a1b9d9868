"""Training: the trainer, its steps and its hooks."""

from d2_ext.engine.trainer import Trainer

__all__ = ["Trainer"]
