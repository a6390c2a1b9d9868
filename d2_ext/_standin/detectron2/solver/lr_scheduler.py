"""Learning rates as functions of the part of the run that is over."""

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


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule with a warm-up in its place at the beginning."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """Start at ``warmup_factor`` times the first value of ``scheduler``, which follows the warm-up.

        Args:
            warmup_length: part of the run, in [0, 1].
            warmup_method: "linear" goes to the value that follows, "constant" jumps to it; ValueError for others.
            rescale_interval: squeeze ``scheduler`` into what is left of the run, instead of leaving its beginning out.
        """
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            warmup = LinearParamScheduler(start, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(f"SOLVER.WARMUP_METHOD {warmup_method!r}: 'linear' or 'constant' was expected.")
        scaling = ["rescaled", "rescaled" if rescale_interval else "fixed"]
        super().__init__([warmup, scheduler], [warmup_length, 1 - warmup_length], scaling)


class LRMultiplier(LRScheduler):
    """Multiplies the initial learning rates of an optimizer by a schedule over ``max_iter`` iterations.

    A step beyond the end raises what the schedule raises, a RuntimeError with fvcore's.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        """Begin after iteration ``last_iter``; -1 is a new run. ValueError if ``multiplier`` is no schedule."""
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier {multiplier!r}: one of fvcore's ParamScheduler was expected.")
        self._schedule = multiplier, max_iter
        super().__init__(optimizer, last_iter)  # takes the first step, for which the schedule must be there

    def state_dict(self) -> dict[str, Any]:
        """Initial rates and iteration; the schedule comes from the config."""
        return {name: getattr(self, name) for name in ("base_lrs", "last_epoch")}

    def get_lr(self) -> list[float]:
        """The rates of the parameter groups now."""
        multiplier, length = self._schedule
        return [rate * multiplier(self.last_epoch / length) for rate in self.base_lrs]
