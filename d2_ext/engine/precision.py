"""Mixed precision training: float16 with scaled losses on GPUs, bfloat16 on CPUs that compute it."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass

from d2_ext.utils.devices import cpu_computes_bfloat16

import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """How a step computes.

    Attributes:
        device: "cuda" or "cpu".
        dtype: of the operations that autocast lowers; None for float32 throughout.
        scaler: of the loss, against underflow of float16 gradients; None where nothing needs scaling.
    """

    device: str
    dtype: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None

    def autocast(self) -> AbstractContextManager:
        """A context in which the forward pass computes in this precision."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None)


def choose_precision(device: str, *, mixed: bool) -> Precision:
    """The precision of a run.

    Args:
        device: of the model, "cuda" or "cpu".
        mixed: ``SOLVER.AMP.ENABLED``. On a GPU float16 as in Detectron2's ``AMPTrainer``. On the CPU bfloat16, which
            has the range of float32, so that no gradient needs scaling; float32 with a warning where the CPU has no
            instructions for it. Inference stays in float32.
    """
    if not mixed:
        return Precision(device)
    if device == "cuda":
        return Precision(device, torch.float16, torch.amp.GradScaler("cuda"))
    if not cpu_computes_bfloat16():
        logger.warning("SOLVER.AMP.ENABLED: this CPU has no bfloat16 instructions; training in float32.")
        return Precision(device)
    logger.info("SOLVER.AMP.ENABLED: training in bfloat16 on the CPU.")
    return Precision(device, torch.bfloat16)
