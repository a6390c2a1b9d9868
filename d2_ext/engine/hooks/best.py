"""The best evaluation so far: its weights are kept, and training stops when none is better for long."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.durable import save_durably
from d2_ext.engine.hooks.finished import OnlyIfFinished

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)


class EarlyStopped(BaseException):
    """Ends the loop as planned; no Exception, because nothing failed."""


class WeightsFile:
    """The part of a checkpointer that ``BestCheckpointer`` needs; it saves weights alone, ready for deployment.

    Args:
        model: not wrapped.
        folder: of the run; nothing is written if it is empty.
        weights: gives a context in which the model has the weights to save.
        class_names: saved with them if there are any, as in checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str,
        weights: Callable[[], AbstractContextManager],
        class_names: Sequence[str] = (),
    ) -> None:
        self._model, self._folder, self._weights = model, folder, weights
        self._names = {"class_names": [str(name) for name in class_names]} if len(class_names) else {}

    def save(self, name: str, **more: Any) -> None:
        """Write ``<name>.pth``; it is not one to resume from.

        Raises:
            TrainingError: if the file cannot be written; what was there before stays.
        """
        if self._folder:
            with self._weights():
                save_durably(
                    {"model": self._model.state_dict(), **self._names, **more}, Path(self._folder) / f"{name}.pth"
                )


class BestWeights(OnlyIfFinished, hooks.BestCheckpointer):
    """Detectron2's ``BestCheckpointer`` that goes on where it was when a run is resumed."""

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.best_metric, "iteration": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["metric"], state_dict["iteration"]


class EarlyStop(HookBase):
    """Ends training after ``patience`` evaluations in a row that were not better than the best one.

    To be registered in all processes, after the ``EvalHook``; the metric is known to the main process only.

    Args:
        period: ``TEST.EVAL_PERIOD``, at least 1.
        metric: name of the stored scalar, such as "bbox/AP".
        mode: "max" or "min".
        patience: evaluations, at least 1.
        finish: called with ``iteration=`` before training ends; saves the final checkpoint.

    """

    def __init__(self, period: int, metric: str, mode: str, patience: int, finish: Callable[..., None]) -> None:
        self._period, self._metric, self._patience, self._finish = period, metric, patience, finish
        self._sign = 1 if mode == "max" else -1
        self._best, self._since_best, self._last_iteration = -math.inf, 0, -1

    def before_train(self) -> None:
        self._stop_if_due()

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if (
            (iteration + 1) % self._period
            or iteration <= self._last_iteration
            or iteration + 1 == self.trainer.max_iter
        ):
            return
        value, _ = self.trainer.storage.latest().get(self._metric, (math.nan, 0))
        value = self._sign * comm.all_gather(float(value))[0]
        self._last_iteration = iteration
        if value > self._best:
            self._best, self._since_best = value, 0
        else:
            self._since_best += 1
        if self._since_best >= self._patience:
            self._finish(iteration=iteration)
            self.trainer.iter = self.trainer.max_iter = iteration + 1  # to all hooks, the run has ended as planned
        self._stop_if_due()

    def _stop_if_due(self) -> None:
        if self._since_best < self._patience:
            return
        logger.info(
            "Training ends at iteration %d: %s was not better in %d evaluations than its best value %.4f.",
            *(self._last_iteration, self._metric, self._since_best, self._sign * self._best),
        )
        raise EarlyStopped

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "since_best": self._since_best, "last_iteration": self._last_iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._since_best = state_dict["best"], state_dict["since_best"]
        self._last_iteration = state_dict["last_iteration"]


class RepeatEvaluation(HookBase):
    """Evaluates when a run starts from a checkpoint that was written just before an evaluation.

    Detectron2 saves before it evaluates, since an evaluation may fail. The resumed run starts at the next iteration,
    and without this the best weights and early stopping would never hear of that evaluation.

    Args:
        period: ``TEST.EVAL_PERIOD``.
        hooks: the ``EvalHook`` and those that go by its results, in this order, all registered before this one.
    """

    def __init__(self, period: int, hooks: Sequence[HookBase]) -> None:
        self._period, self._hooks = period, hooks
        self._last_iteration = -1

    def before_train(self) -> None:
        trainer = self.trainer
        finished = trainer.start_iter - 1
        missed = finished >= 0 and (finished + 1) % self._period == 0 and finished > self._last_iteration
        if not missed or finished + 1 >= trainer.max_iter:
            return
        logger.info("The evaluation of iteration %d was interrupted, or its results were not saved: again", finished)
        trainer.iter = trainer.storage.iter = finished
        for hook in self._hooks:
            hook.after_step()
        self._last_iteration = finished
        trainer.iter = trainer.storage.iter = trainer.start_iter

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self._last_iteration = self.trainer.iter

    def state_dict(self) -> dict[str, Any]:
        return {"last_iteration": self._last_iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_iteration = state_dict["last_iteration"]
