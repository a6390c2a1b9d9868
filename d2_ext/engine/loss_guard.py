"""What happens when a loss is infinite or not a number."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from d2_ext.errors import ConfigError, TrainingError, did_you_mean

import torch
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)

ACTIONS = ("stop", "skip")
MAX_SKIPPED_IN_A_ROW = 10


class LossGuard:
    """Keeps losses that are not finite away from the weights.

    All processes of a run decide together, so that none waits for another one that has stopped.

    Args:
        action: ``SOLVER.NONFINITE_LOSS``: ``"stop"``, or ``"skip"`` the step.
        last_good: gives a sentence about the checkpoint to go back to.

    Raises:
        ConfigError: for another action.
    """

    def __init__(self, action: str, last_good: Callable[[], str]) -> None:
        if action not in ACTIONS:
            raise ConfigError(f"SOLVER.NONFINITE_LOSS {action!r} is unknown. {did_you_mean(action, ACTIONS)}")
        self.skips = action == "skip"
        self._last_good = last_good
        self._skipped_in_a_row = 0
        self._buffers: list[torch.Tensor] = []

    def remember(self, model: nn.Module) -> None:
        """Keep what a forward pass changes by itself (statistics, loss normalizers), if steps may be skipped."""
        if self.skips:
            self._buffers = [buffer.clone() for buffer in model.buffers()]

    def undo(self, model: nn.Module) -> None:
        """Put back what :meth:`remember` has kept."""
        for buffer, before in zip(model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)

    def allows(
        self, iteration: int, losses: Sequence[Mapping[str, torch.Tensor]], batches: Sequence[list[dict[str, Any]]]
    ) -> bool:
        """Whether the weights may be changed; False if the step is to be skipped.

        Args:
            iteration: from 0.
            losses: by name, for each batch of the step.
            batches: the inputs; those of losses that are not finite are named.

        Raises:
            TrainingError: in all processes, if a loss in one of them is not finite and the run is to stop.
        """
        own = "".join(_complaint(each, batch) for each, batch in zip(losses, batches, strict=True))
        complaints = [text for text in comm.all_gather(own) if text]
        if not complaints:
            self._skipped_in_a_row = 0
            return True
        message = f"The loss of iteration {iteration} is not finite:{''.join(complaints)}\n"
        self._skipped_in_a_row += 1
        if self.skips and self._skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
            logger.warning("%sThe step is skipped (SOLVER.NONFINITE_LOSS).", message)
            return False
        many = f"{self._skipped_in_a_row} steps in a row were like this. " if self.skips else ""
        raise TrainingError(
            f"{message}{many}The weights were not changed. {self._last_good()} Look at these images and their boxes; "
            "lower SOLVER.BASE_LR or enable SOLVER.CLIP_GRADIENTS; or leave such steps out with SOLVER.NONFINITE_LOSS "
            "skip. Then continue with --resume."
        )


def _complaint(losses: Mapping[str, torch.Tensor], batch: list[dict[str, Any]]) -> str:
    """Two lines that name losses and images; empty if all is well."""
    values = {name: loss.item() for name, loss in losses.items()}
    if all(map(math.isfinite, values.values())):
        return ""
    terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    return f"\n  {terms}\n  in {', '.join(str(image.get('file_name', 'an image without name')) for image in batch)}"
