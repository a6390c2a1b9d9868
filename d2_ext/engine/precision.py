"""Mixed precision training: float16 on GPUs as Detectron2 does it, bfloat16 on CPUs that compute it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from d2_ext.utils.devices import cpu_computes_bfloat16

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

logger = logging.getLogger(__name__)


def build_inner_trainer(
    model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer, *, mixed_precision: bool
) -> SimpleTrainer:
    """Choose the loop that runs one step.

    Args:
        model: already wrapped for data parallel training.
        loader: batches.
        optimizer: over the model's parameters.
        mixed_precision: ``SOLVER.AMP.ENABLED``. On a GPU Detectron2's ``AMPTrainer`` (float16, scaled gradients); on
            the CPU :func:`autocast_in_training` has prepared the model, and the ordinary loop serves.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    return (AMPTrainer if mixed_precision and on_gpu else SimpleTrainer)(model, loader, optimizer)


def autocast_in_training(model: nn.Module) -> nn.Module:
    """Let a model on the CPU compute its losses in bfloat16 where the CPU has instructions for it; else say so.

    bfloat16 has the range of float32, so no gradient needs scaling. Inference stays in float32.

    Returns:
        The same model.
    """
    if not cpu_computes_bfloat16():
        logger.warning("SOLVER.AMP.ENABLED: this CPU has no bfloat16 instructions; training in float32.")
        return model
    forward = model.forward

    def forward_in_bfloat16(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
            return forward(*args, **kwargs)

    model.forward = forward_in_bfloat16
    logger.info("SOLVER.AMP.ENABLED: training in bfloat16 on the CPU.")
    return model
