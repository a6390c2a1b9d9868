"""Hooks about statistics: of batch norms, and of the memory in use."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from ._periods import is_due, is_last
from .train_loop import HookBase

_LOGGER = "detectron2.engine.hooks"  # the module through which the hooks are public


class PreciseBN(HookBase):
    """Replaces running statistics of batch norms by averages over some batches, before an evaluation.

    Args:
        period: iterations; 0 runs it only at the last one.
        model: its batch norms in training mode are changed.
        data_loader: yields batches for the model.
        num_iter: how many batches are averaged.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        from fvcore.nn.precise_bn import get_bn_modules  # lazy: fvcore.nn compiles functions when it is imported

        self._logger = logging.getLogger(_LOGGER)
        self._disabled = len(get_bn_modules(model)) == 0
        if self._disabled:
            self._logger.info("PreciseBN is disabled because model does not contain BN layers in training mode.")
            return
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._data_iter: Iterator | None = None

    def after_step(self) -> None:
        if is_last(self.trainer) or (not self._disabled and is_due(self.trainer, self._period)):
            self.update_stats()

    def update_stats(self) -> None:
        """Compute the statistics now."""
        from fvcore.nn.precise_bn import update_bn_stats

        if self._disabled:
            return
        with EventStorage():  # drops the events of these forward passes
            self._logger.info(
                f"Running precise-BN for {self._num_iter} iterations...  "
                "Note that this could produce different statistics every time."
            )
            update_bn_stats(self._model, self._batches(), self._num_iter)

    def _batches(self) -> Iterator:
        if self._data_iter is None:  # kept, so that the next time goes on where this one stops
            self._data_iter = iter(self._data_loader)
        for number in itertools.count(1):
            if number % 100 == 0:
                self._logger.info(f"Running precise-BN ... {number}/{self._num_iter} iterations.")
            yield next(self._data_iter)


class TorchMemoryStats(HookBase):
    """Logs the use of CUDA memory.

    Args:
        period: iterations.
        max_runs: how often at most; a summary follows the last one.
    """

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period, self._max_runs = period, max_runs
        self._runs = 0  # reports so far
        self._logger = logging.getLogger(_LOGGER)

    def after_step(self) -> None:
        due = is_due(self.trainer, self._period) or is_last(self.trainer)
        if self._runs > self._max_runs or not due or not torch.cuda.is_available():
            return
        values = {
            "max_reserved_mem": torch.cuda.max_memory_reserved(),
            "reserved_mem": torch.cuda.memory_reserved(),
            "max_allocated_mem": torch.cuda.max_memory_allocated(),
            "allocated_mem": torch.cuda.memory_allocated(),
        }
        text = "  ".join(f"{name}: {value / 2**20:.0f}MB" for name, value in values.items())
        self._logger.info(f" iter: {self.trainer.iter}  {text} ")
        self._runs += 1
        if self._runs == self._max_runs:
            self._logger.info("\n" + torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()
