"""The protocol of evaluators, and the loop that runs a model over a data set."""

from __future__ import annotations

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

logger = logging.getLogger(__name__)

_WARMUP_BATCHES = 5
_SLOW_BATCH_SECONDS = 5


class DatasetEvaluator:
    """Collects outputs of a model batch by batch and turns them into metrics at the end."""

    def reset(self) -> None:
        """Forget everything; called before the first batch."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take one batch.

        Args:
            inputs: what the model was called with, a list of dicts.
            outputs: what it returned, one element for each input.
        """

    def evaluate(self) -> Any:
        """Compute the metrics.

        Returns:
            Usually ``{task: {metric: value}}``, e.g. ``{"bbox": {"AP50": 80.0}}``; None or {} in processes other than
            the first.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators at once; their tasks must have different names."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, Any]:
        merged: OrderedDict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if not is_main_process() or results is None:
                continue
            for task, metrics in results.items():
                assert task not in merged, f"two evaluators give results under the same name '{task}'"
                merged[task] = metrics
        return merged


class _Stopwatch:
    """Seconds spent in each phase since the warm-up ended."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.warmup = min(_WARMUP_BATCHES, total - 1)
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self.spent = {"data": 0.0, "compute": 0.0, "eval": 0.0}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - before

    def log_progress(self, idx: int) -> None:
        """Say how far it is, at most every five seconds, once the figures are steady."""
        batches = idx + 1 - (self.warmup if idx >= self.warmup else 0)
        data, compute, evaluation = (seconds / batches for seconds in self.spent.values())
        per_batch = (time.perf_counter() - self.started) / batches
        if idx < self.warmup * 2 and compute <= _SLOW_BATCH_SECONDS:
            return
        left = datetime.timedelta(seconds=int(per_batch * (self.total - idx - 1)))
        text = (
            f"Inference done {idx + 1}/{self.total}. Dataloading: {data:.4f} s/iter. Inference: {compute:.4f} s/iter. "
            f"Eval: {evaluation:.4f} s/iter. Total: {per_batch:.4f} s/iter. ETA={left}"
        )
        log_every_n_seconds(logging.INFO, text, n=5)

    def log_totals(self) -> None:
        """Log the times per batch in the format that scripts look for."""
        wall = time.perf_counter() - self.started
        compute = self.spent["compute"]
        shown = (
            ("inference time", datetime.timedelta(seconds=wall), wall),
            ("inference pure compute time", datetime.timedelta(seconds=int(compute)), compute),
        )
        for name, span, seconds in shown:
            per_batch = seconds / (self.total - self.warmup)
            logger.info(f"Total {name}: {span} ({per_batch:.6f} s / iter per device, on {get_world_size()} devices)")


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | MutableSequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> Any:
    """Run a model over all batches without gradients and return what the evaluator makes of its outputs.

    Args:
        model: called with each batch; a module is in eval mode meanwhile.
        data_loader: has a length.
        evaluator: one, a list, or None to measure the speed only.
        callbacks: functions for ``on_start``, ``before_inference``, ``after_inference``, ``on_end``.

    Returns:
        The evaluator's results; {} if it has none (as in processes other than the first).
    """
    callbacks = callbacks or {}

    def call(name: str) -> None:
        callbacks.get(name, lambda: None)()

    total = len(data_loader)
    logger.info(f"Start inference on {total} batches")
    if evaluator is None or isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    watch = _Stopwatch(total)
    mode = inference_context(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.no_grad():
        call("on_start")
        fetch_started = time.perf_counter()
        for idx, inputs in enumerate(data_loader):
            watch.spent["data"] += time.perf_counter() - fetch_started
            if idx == watch.warmup:
                watch.restart()
            with watch.phase("compute"):
                call("before_inference")
                outputs = model(inputs)
                call("after_inference")
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            with watch.phase("eval"):
                evaluator.process(inputs, outputs)
            watch.log_progress(idx)
            fetch_started = time.perf_counter()
        call("on_end")
    watch.log_totals()
    results = evaluator.evaluate()
    return {} if results is None else results


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode inside the ``with`` block and back into its former mode after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
