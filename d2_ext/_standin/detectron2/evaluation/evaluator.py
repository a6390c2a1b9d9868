"""Runs a model over a data set, times it, and hands what it finds to evaluators."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

logger = logging.getLogger(__name__)

_WARM_UP = 5  # batches that are not timed


class DatasetEvaluator:
    """Base of what judges a model's outputs over a data set; every method does nothing until it is overridden."""

    def reset(self) -> None:
        """Forget what was processed; called before the first batch."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take in one batch, and the model's outputs in the same order."""

    def evaluate(self) -> Any:
        """Judge what was processed: results by task, such as ``{"bbox": {"AP": 41.2}}``; None on other processes."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one. They get the same batches, and have results of different tasks."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._members = tuple(evaluators)

    def reset(self) -> None:
        for member in self._members:
            member.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for member in self._members:
            member.process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, Any]:
        """Judge with each; an AssertionError for a task of two evaluators."""
        merged: OrderedDict[str, Any] = OrderedDict()
        everything = [member.evaluate() for member in self._members]
        for results in everything if comm.is_main_process() else ():
            twice = merged.keys() & (results or {}).keys()
            assert not twice, f"Two evaluators have results named {', '.join(sorted(twice))}."
            merged.update(results or {})
        return merged


class _Clock:
    """Adds up how long each part of the work took."""

    def __init__(self) -> None:
        self._began = self._last = perf_counter()
        self.seconds: Counter[str] = Counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap as spent on ``part``."""
        now = perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self._last - self._began


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | MutableSequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> Any:
    """Run a model over a data set in eval mode, without gradients, and evaluate its outputs.

    Gives the evaluator's results; an empty dict on processes that have none.

    Args:
        model: gets a batch; a module is in its former mode again afterwards.
        data_loader: batches; it has a length.
        evaluator: one, several, or None if only the time is of interest.
        callbacks: called at ``"on_start"``, ``"before_inference"``, ``"after_inference"`` (each batch), ``"on_end"``.
    """
    if not isinstance(evaluator, DatasetEvaluator):
        evaluator = DatasetEvaluators(evaluator or ())
    call = defaultdict(lambda: lambda: None, callbacks or {})
    batches = len(data_loader)
    warm_up = max(0, min(_WARM_UP, batches - 1))
    logger.info("Start inference on %d batches", batches)
    evaluator.reset()
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        call["on_start"]()
        clock = _Clock()
        for number, batch in enumerate(data_loader):
            if number == warm_up:
                clock = _Clock()
            call["before_inference"]()
            clock.lap("data")
            outputs = model(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # or the time of the model would be counted where its outputs are used
            clock.lap("model")
            call["after_inference"]()
            evaluator.process(batch, outputs)
            clock.lap("evaluation")
            _log_progress(clock, number + 1 - (warm_up if number >= warm_up else 0), batches - number - 1)
        call["on_end"]()
    whole, alone = clock.total, clock.seconds["model"]
    for what, seconds, shown in (("", whole, whole), ("pure compute ", alone, int(alone))):
        each = f"{seconds / max(1, batches - warm_up):.6f} s / iter per device, on {comm.get_world_size()} devices"
        logger.info(f"Total inference {what}time: {timedelta(seconds=shown)} ({each})")
    results = evaluator.evaluate()
    return {} if results is None else results


def _log_progress(clock: _Clock, done: int, left: int) -> None:
    """Say, every five seconds, where the time of the last ``done`` batches went, and how long the others will take."""
    if clock.total >= 5:
        parts = ", ".join(f"{part} {seconds / done:.4f}" for part, seconds in clock.seconds.items())
        rest = timedelta(seconds=int(clock.total / done * left))
        text = f"{left} batches are left, {clock.total / done:.4f} s each ({parts}). ETA={rest}"
        log_every_n_seconds(logging.INFO, text, n=5, name=__name__)


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Set a model to eval mode in this context; afterwards it is in its former mode, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
