"""Learning-rate schedules, given as a multiplier over the relative position in the run."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """Puts a warm-up in front of another schedule.

    The warm-up begins at ``warmup_factor`` times the schedule's first value, and ends at the value that the schedule
    has where the warm-up ends.

    Args:
        scheduler: the schedule after the warm-up.
        warmup_factor: e.g. 0.001.
        warmup_length: share of the run, in [0, 1].
        warmup_method: "linear" or "constant".
        rescale_interval: squeeze the whole schedule into the rest of the run, instead of cutting off its beginning.

    Raises:
        ValueError: for an unknown method.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        first = warmup_factor * scheduler(0.0)
        last = scheduler(0.0 if rescale_interval else warmup_length)
        if warmup_method == "linear":
            warmup: ParamScheduler = LinearParamScheduler(first, last)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(first)
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method}")
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies the initial learning rate of each parameter group by a schedule; stepped once an iteration.

    Args:
        optimizer: its groups' learning rates are the base.
        multiplier: function of the position in the run, in [0, 1).
        max_iter: length of the run; stepping beyond it raises.
        last_iter: iterations that were done before, minus one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"LRMultiplier(multiplier=) must be a ParamScheduler of fvcore. Got {multiplier} instead.")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Only the state; the schedule comes from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base * factor for base in self.base_lrs]
