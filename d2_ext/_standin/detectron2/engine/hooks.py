"""Hooks of the training loop."""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from detectron2._missing import refuse
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as _LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from ._periods import is_due, is_last
from ._statistics_hooks import PreciseBN, TorchMemoryStats
from .train_loop import HookBase

__all__ = [
    "CallbackHook",
    "IterationTimer",
    "PeriodicWriter",
    "PeriodicCheckpointer",
    "BestCheckpointer",
    "LRScheduler",
    "EvalHook",
    "PreciseBN",
    "TorchMemoryStats",
]

__getattr__ = refuse(__name__, ["AutogradProfiler", "TorchProfiler"])

_Callback = Callable[[Any], Any] | None


class CallbackHook(HookBase):
    """Calls functions with the trainer as argument."""

    def __init__(
        self,
        *,
        before_train: _Callback = None,
        after_train: _Callback = None,
        before_step: _Callback = None,
        after_step: _Callback = None,
    ) -> None:
        self._callbacks: dict[str, _Callback] = {
            "before_train": before_train,
            "before_step": before_step,
            "after_step": after_step,
            "after_train": after_train,
        }

    def _call(self, moment: str) -> None:
        callback = self._callbacks[moment]
        if callback:
            callback(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")

    def after_train(self) -> None:
        self._call("after_train")
        self._callbacks.clear()  # they may hold the trainer, which must not stay alive through them


class IterationTimer(HookBase):
    """Stores the ``time`` of each iteration and logs a summary; to be registered first.

    Args:
        warmup_iter: iterations at the beginning that are not counted.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer, self._total_timer = Timer(), Timer()  # of the current step; of all steps, without hooks
        self._start_time = time.perf_counter()

    def _start_over(self) -> None:
        """Forget the time so far, of steps and of hooks."""
        self._start_time = time.perf_counter()
        self._total_timer.reset()

    def before_train(self) -> None:
        self._start_over()
        self._total_timer.pause()

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        total, in_steps = time.perf_counter() - self._start_time, self._total_timer.seconds()
        counted = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if counted > 0 and in_steps > 0:
            logger.info(
                f"Overall training speed: {counted} iterations in {_clock(in_steps)} ({in_steps / counted:.4f} s / it)"
            )
        logger.info(f"Total training time: {_clock(total)} ({_clock(total - in_steps)} on hooks)")

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done < self._warmup_iter:
            self._start_over()
        else:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        self._total_timer.pause()


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Calls writers every ``period`` iterations, at the last one, and after the training, where it closes them.

    Args:
        writers: the writers.
        period: iterations; does not change how writers smooth values.
    """

    def __init__(self, writers: list[EventWriter], period: int = 20) -> None:
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        if is_due(self.trainer, self._period) or is_last(self.trainer):
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()  # what other hooks stored after the training
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """Saves ``<prefix>_<iteration>`` every ``period`` iterations and ``<prefix>_final`` after the last one."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves a checkpoint when a metric is better than ever; to be registered after the ``EvalHook``.

    Args:
        eval_period: the one of the ``EvalHook``.
        checkpointer: saves the files.
        val_metric: name of the stored scalar, such as "bbox/AP50".
        mode: "max" or "min".
        file_prefix: name of the file.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        assert mode in ("max", "min"), f'Mode "{mode}" to `BestCheckpointer` is unknown. It should be "max" or "min".'
        self._logger = logging.getLogger(__name__)
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._sign = 1 if mode == "max" else -1
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _best_checking(self) -> None:
        name = self._val_metric
        if name not in self.trainer.storage.latest():
            self._logger.warning(
                f"Given val metric {name} does not seem to be computed/stored. Will not be checkpointing based on it."
            )
            return
        value, iteration = self.trainer.storage.latest()[name]
        score = f"latest eval score for {name} is {value:0.5f}"
        if self.best_metric is None:
            if math.isfinite(value):
                self._save(value, iteration)
                self._logger.info(f"Saved first model at {value:0.5f} @ {iteration} steps")
        elif self._sign * value > self._sign * self.best_metric:
            last = f"{self.best_metric:0.5f} @ iteration {self.best_iter}"
            self._save(value, iteration)
            self._logger.info(f"Saved best model as {score}, better than last best score {last}.")
        else:
            self._logger.info(
                f"Not saving as {score}, not better than best score {self.best_metric:0.5f} "
                f"@ iteration {self.best_iter}."
            )

    def _save(self, value: float, iteration: int) -> None:
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        if math.isfinite(value):
            self.best_metric, self.best_iter = value, iteration

    # Both at the moments at which EvalHook evaluates.
    def after_step(self) -> None:
        if is_due(self.trainer, self._period) and not is_last(self.trainer):
            self._best_checking()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._best_checking()


class LRScheduler(HookBase):
    """Steps the learning-rate schedule each iteration, after it stored the ``lr`` that was used.

    Args:
        optimizer: the trainer's for None.
        scheduler: of torch; or a function of the position in the run, by which the base rates are multiplied; the
            trainer's for None.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | None = None, scheduler: _LRScheduler | ParamScheduler | None = None
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        trainer = self.trainer
        self._optimizer = self._optimizer or trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, trainer.max_iter, last_iter=trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The group whose rate is shown: the one of most parameters; if all have one, of the commonest rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> Any:
        """The schedule in use."""
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self.scheduler, _LRScheduler):
            logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations and after the training; has to run on all processes or on none.

    Args:
        eval_period: iterations; 0 evaluates only at the end.
        eval_function: takes nothing, returns a (nested) dict of numbers, stored as ``task/metric``, or None.
        eval_after_train: whether to evaluate at the end.
    """

    def __init__(
        self, eval_period: int, eval_function: Callable[[], dict | None], eval_after_train: bool = True
    ) -> None:
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict. Got {results} instead."
            metrics = flatten_results_dict(results)
            for name, value in metrics.items():
                try:
                    float(value)
                except Exception as error:
                    raise ValueError(
                        f"[EvalHook] eval_function should return a nested dict of float. Got '{name}: {value}' instead."
                    ) from error
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
        comm.synchronize()  # processes may take different times

    def after_step(self) -> None:
        if is_due(self.trainer, self._period) and not is_last(self.trainer):
            self._do_eval()

    def after_train(self) -> None:
        failed_early = self.trainer.iter + 1 < self.trainer.max_iter
        if self._eval_after_train and not failed_early:
            self._do_eval()
        del self._func  # it may hold the trainer, which must not stay alive through it
