"""The hooks of an ordinary run: times, learning rate, checkpoints, evaluation, and what writes the log."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from detectron2._missing import refuse
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _FvcorePeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from torch.optim.lr_scheduler import LRScheduler as _TorchScheduler

from .train_loop import HookBase, TrainerBase

__getattr__ = refuse(__name__, "AutogradProfiler PreciseBN TorchMemoryStats TorchProfiler")

logger = logging.getLogger(__name__)

_Callback = Callable[[TrainerBase], None]


def _is_last(trainer: TrainerBase) -> bool:  # or the run is behind its planned end
    return trainer.iter + 1 >= trainer.max_iter


def _is_due(trainer: TrainerBase, period: int) -> bool:  # never for a period of 0
    return period > 0 and (trainer.iter + 1) % period == 0


class CallbackHook(HookBase):
    """Calls functions with the trainer, each at the point of its name."""

    def __init__(
        self,
        *,
        before_train: _Callback | None = None,
        after_train: _Callback | None = None,
        before_step: _Callback | None = None,
        after_step: _Callback | None = None,
    ) -> None:
        given = {"before_train": before_train, "after_train": after_train, "before_step": before_step}
        for event, callback in {**given, "after_step": after_step}.items():
            if callback is not None:
                setattr(self, event, lambda callback=callback: callback(self.trainer))


class IterationTimer(HookBase):
    """Stores ``time``, the seconds of each iteration, and logs their sum and that of other hooks. Register it first.

    ``warmup_iter`` is the first iteration of the run that counts, from 1: the very first ones are slower.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._untimed_steps = warmup_iter

    def before_train(self) -> None:
        self._since_warm = Timer()
        self._work, self._count = 0.0, 0

    def before_step(self) -> None:
        self._step = Timer()

    def after_step(self) -> None:
        if self.trainer.iter + 1 - self.trainer.start_iter < self._untimed_steps:
            self._since_warm.reset()
            return
        seconds = self._step.seconds()
        self.trainer.storage.put_scalar("time", seconds)
        self._work, self._count = self._work + seconds, self._count + 1

    def after_train(self) -> None:
        whole, work, count = self._since_warm.seconds(), self._work, self._count
        clock = [timedelta(seconds=int(seconds)) for seconds in (whole, work, whole - work)]
        if count:
            logger.info(f"Overall training speed: {count} iterations in {clock[1]} ({work / count:.4f} s / it)")
        logger.info(f"Total training time: {clock[0]} ({clock[2]} on hooks)")


class PeriodicWriter(HookBase):
    """Lets writers write at periods, at the last iteration and once more behind it. Register it behind other hooks."""

    def __init__(self, writers: list[EventWriter], period: int = 20) -> None:
        strange = [type(writer).__name__ for writer in writers if not isinstance(writer, EventWriter)]
        assert not strange, f"Writers have to be instances of EventWriter; found {', '.join(strange)}."
        self.writers, self.period = writers, period

    def after_step(self) -> None:
        if _is_due(self.trainer, self.period) or _is_last(self.trainer):
            self._write()

    def after_train(self) -> None:
        self._write()  # such as results of the last evaluation
        for writer in self.writers:
            writer.close()

    def _write(self) -> None:
        for writer in self.writers:
            writer.write()


class PeriodicCheckpointer(_FvcorePeriodicCheckpointer, HookBase):
    """fvcore's ``PeriodicCheckpointer`` (same arguments) as a hook, which saves behind iterations."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class _AtEvaluations(HookBase):
    """Calls ``_act`` behind each period, but behind the last iteration only when the run is over."""

    eval_period: int
    eval_after_train: bool = True

    def _act(self) -> None:
        raise NotImplementedError

    def after_step(self) -> None:
        if _is_due(self.trainer, self.eval_period) and not _is_last(self.trainer):
            self._act()

    def after_train(self) -> None:
        if self.eval_after_train and _is_last(self.trainer):  # it has not failed before
            self._act()


class EvalHook(_AtEvaluations):
    """Evaluates and stores results under names like ``bbox/AP``. To be registered in all processes, which wait here.

    Args:
        eval_period: iterations from one evaluation to the next; 0: only behind the run.
        eval_function: returns results (numbers, or dicts of results, by name), or nothing; AssertionError for anything
            but a dict, ValueError for a result that is no number.
        eval_after_train: evaluate behind the last iteration, if the run reached it.
    """

    def __init__(
        self, eval_period: int, eval_function: Callable[[], dict | None], eval_after_train: bool = True
    ) -> None:
        self.eval_period, self.eval_function, self.eval_after_train = eval_period, eval_function, eval_after_train

    def _act(self) -> None:
        results = self.eval_function() or {}
        assert isinstance(results, dict), f"An evaluation has to return a dict, not {results!r}."
        for name, result in flatten_results_dict(results).items():
            try:
                self.trainer.storage.put_scalar(name, float(result), smoothing_hint=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"Results have to be numbers; this one is not: {name}: {result}") from error
        comm.synchronize()  # the others would wait at the next gradients, and perhaps time out there


class BestCheckpointer(_AtEvaluations):
    """Saves after each evaluation that is better than all before (and finite); register it behind the ``EvalHook``.

    Args:
        eval_period, checkpointer: that of the ``EvalHook``; what saves.
        val_metric, mode: stored scalar to go by, such as ``"bbox/AP"``, and whether ``"max"`` or ``"min"`` is better.
        file_prefix: name of the file, without extension.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        assert mode in ("max", "min"), f"BestCheckpointer has the modes 'max' and 'min', not {mode!r}."
        self.eval_period, self.checkpointer, self.file_prefix = eval_period, checkpointer, file_prefix
        self.val_metric, self.mode = val_metric, mode
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _act(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.val_metric, (None, None))
        if value is None:
            logger.warning("No scalar %r is stored, so no best checkpoint is saved.", self.val_metric)
            return
        sign = 1 if self.mode == "max" else -1
        bar = -math.inf if self.best_metric is None else sign * self.best_metric
        is_best = bar < sign * value < math.inf
        if is_best:
            self.best_metric, self.best_iter = value, iteration
            self.checkpointer.save(self.file_prefix, iteration=iteration)
        what = f"the best so far, saved as {self.file_prefix}" if is_best else f"the best stays {self.best_metric}"
        logger.info("%s is %.5f at iteration %d: %s", self.val_metric, value, iteration, what)


class LRScheduler(HookBase):
    """Stores ``lr``, the learning rate an iteration had, and takes the scheduler a step further.

    Args:
        optimizer: the trainer's if not given.
        scheduler: of torch, or a function of the position in the run by which the first learning rates are multiplied;
            the trainer's ``scheduler`` if not given.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: _TorchScheduler | ParamScheduler | None = None,
    ) -> None:
        self._optimizer_or_none, self._given = optimizer, scheduler

    @property
    def scheduler(self) -> Any:
        """The scheduler that is stepped."""
        return self.trainer.scheduler if self._given is None else self._given

    def before_train(self) -> None:
        run = self.trainer
        self._stepped = run.optimizer if self._optimizer_or_none is None else self._optimizer_or_none
        self._shown = self.get_best_param_group_id(self._stepped)
        if isinstance(self._given, ParamScheduler):
            self._given = LRMultiplier(self._stepped, self._given, run.max_iter, last_iter=run.iter - 1)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Number of the group whose rate stands for all: the (first) largest one, or of groups of one parameter the
        first with the commonest rate."""
        groups = optimizer.param_groups
        commonness = Counter(group["lr"] for group in groups)
        sizes = [len(group["params"]) for group in groups]
        return max(range(len(groups)), key=lambda n: (sizes[n], sizes[n] == 1 and commonness[groups[n]["lr"]]))

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("lr", self._stepped.param_groups[self._shown]["lr"], smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's, if it is one of torch."""
        return self.scheduler.state_dict() if isinstance(self.scheduler, _TorchScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self.scheduler, _TorchScheduler):
            self.scheduler.load_state_dict(state_dict)
