"""Exponential moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from d2_ext.errors import CheckpointError

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn


class AveragedWeights(HookBase):
    """Keeps average = d * average + (1 - d) * weights after each step, of parameters and running statistics.

    d = decay * (1 - exp(-t / warmup)) in step t = 1, 2, ...: early weights, far from the end, are soon forgotten. The
    average is part of the checkpoint. To be registered before the hooks that write checkpoints and evaluate.

    Args:
        model: not wrapped; the average starts at its weights when training starts.
        decay: in [0, 1).
        warmup: steps; 0 for none.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: int) -> None:
        self._model = model
        self._decay, self._warmup = decay, warmup
        self._updates = 0
        self._average: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> AveragedWeights | None:
        """The hook that ``SOLVER.EMA`` describes; None if it is off."""
        ema = cfg.SOLVER.EMA
        return cls(model, ema.DECAY, ema.WARMUP_ITERS) if ema.ENABLED else None

    def before_train(self) -> None:
        if not self._average:  # neither resumed nor trained before
            self._average = {name: value.clone() for name, value in _float_values(self._model)}

    @torch.no_grad()
    def after_step(self) -> None:
        self._updates += 1
        share = 1 - self.decay_at(self._updates)
        for name, value in _float_values(self._model):
            self._average[name].lerp_(value, share)

    def decay_at(self, update: int) -> float:
        """The decay of update 1, 2, ..."""
        return self._decay * (1 - math.exp(-update / self._warmup) if self._warmup else 1)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights; afterwards it has its own ones back, bit for bit."""
        own = {name: value.clone() for name, value in _float_values(self._model)}
        _copy(self._average or own, self._model)
        try:
            yield
        finally:
            _copy(own, self._model)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(_float_values(self._model))
        _check_fits(state_dict["average"], own)
        self._updates = state_dict["updates"]
        self._average = {name: value.to(own[name]) for name, value in state_dict["average"].items()}


def use_averaged_weights(cfg: CfgNode, model: nn.Module, checkpoint: dict[str, Any]) -> bool:
    """Let a model that is to be evaluated have the average in its checkpoint, if ``SOLVER.EMA`` is on and there is one.

    Args:
        cfg: the config.
        model: gets the weights.
        checkpoint: what the checkpointer's ``load`` returned.

    Returns:
        Whether there was one.
    """
    if not cfg.SOLVER.EMA.ENABLED:
        return False
    state = checkpoint.get("trainer", {}).get("hooks", {}).get(AveragedWeights.__qualname__)
    if state is None:
        return False
    _check_fits(state["average"], dict(_float_values(model)))
    _copy(state["average"], model)
    return True


def _float_values(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers that can be averaged; counters such as ``num_batches_tracked`` cannot."""
    return [(name, value) for name, value in model.state_dict().items() if value.is_floating_point()]


def _check_fits(average: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    wrong = [name for name in {**average, **own} if name not in average or name not in own]
    wrong += [name for name in average if name in own and average[name].shape != own[name].shape]
    if wrong:
        raise CheckpointError(
            f"The averaged weights in the checkpoint do not fit this model: {len(wrong)} names or shapes differ, such "
            f"as {wrong[0]}. Use the config they were trained with, or SOLVER.EMA.ENABLED False."
        )


@torch.no_grad()
def _copy(values: dict[str, Tensor], model: nn.Module) -> None:
    for name, value in _float_values(model):
        value.copy_(values[name])
