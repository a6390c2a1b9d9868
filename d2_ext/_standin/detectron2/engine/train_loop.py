"""The training loop and what one iteration does: batch, losses, gradients, numbers for the log, new weights."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from math import isfinite
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from fvcore.common.timer import Timer
from torch import nn

logger = logging.getLogger(__name__)


class HookBase:
    """Base of what a trainer calls at fixed points of a run; every method does nothing until it is overridden.

    A hook that has a ``load_state_dict(state)`` gets back from a checkpoint what its ``state_dict`` put there.
    ``trainer`` is a weak reference, there once the hook is registered; ``trainer.iter`` counts from 0.
    """

    trainer: TrainerBase = None  # type: ignore[assignment]

    def before_train(self) -> None:
        """The run starts."""

    def after_train(self) -> None:
        """The run has ended, perhaps because of an error (then ``trainer.iter < trainer.max_iter``)."""

    def before_step(self) -> None:
        """An iteration starts."""

    def after_backward(self) -> None:
        """It has its gradients; the weights have not changed yet."""

    def after_step(self) -> None:
        """It is over."""

    def state_dict(self) -> dict[str, Any]:
        """What belongs into a checkpoint; an empty dict leaves no entry there."""
        return {}


def _announcement(event: str, *, sets_clock: bool = False) -> Callable[[TrainerBase], None]:
    """A trainer's method that calls the method of this name of each hook, in the order of their registration."""

    def announce(self: TrainerBase) -> None:
        if sets_clock:  # what is stored from here on belongs to the trainer's iteration
            self.storage.iter = self.iter
        for hook in self._hooks:
            getattr(hook, event)()

    announce.__doc__ = f"Call ``{event}`` of the hooks."
    return announce


class TrainerBase:
    """A loop over iterations that tells its hooks where it is; subclasses say in ``run_step`` what an iteration does.

    ``iter`` counts from 0 and is ``max_iter`` when all iterations succeeded; the run starts at ``start_iter``.
    ``storage`` has the scalars of the run, while and after it trains.
    """

    max_iter: int
    storage: EventStorage

    before_train = _announcement("before_train")
    before_step = _announcement("before_step", sets_clock=True)
    after_backward = _announcement("after_backward")  # to be called by run_step
    after_step = _announcement("after_step")
    after_train = _announcement("after_train", sets_clock=True)

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Add hooks behind those that are there, without those that are None (AssertionError for other objects)."""
        self._hooks += [self._adopted(hook) for hook in hooks if hook is not None]

    def _adopted(self, hook: HookBase) -> HookBase:
        assert isinstance(hook, HookBase), f"A hook has to be an instance of HookBase, or None; found {hook!r}."
        hook.trainer = weakref.proxy(self)  # a hook does not keep its trainer alive
        return hook

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from ``start_iter`` to ``max_iter - 1``.

        An exception is logged, the hooks get their ``after_train``, and it is raised again.
        """
        logger.info("Starting training from iteration %d", start_iter)
        self.iter, self.start_iter, self.max_iter = start_iter, start_iter, max_iter
        with EventStorage(start_iter) as self.storage, contextlib.ExitStack() as at_the_end:
            at_the_end.callback(self.after_train)
            try:
                self.before_train()
                for number in range(start_iter, max_iter):
                    self.iter = number  # whatever a hook made of it
                    for phase in (self.before_step, self.run_step, self.after_step):
                        phase()
                self.iter = max(start_iter, max_iter)
            except Exception:
                logger.exception("Exception during training:")
                raise

    def run_step(self) -> None:
        """Do the work of one iteration; to be overridden (NotImplementedError)."""
        raise NotImplementedError(f"{type(self).__name__} defines no run_step().")

    def state_dict(self) -> dict[str, Any]:
        """``iteration``, and ``hooks``: the states of hooks that have one, the first of each class, by class name."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            if state := hook.state_dict():
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; that of a class without a registered hook is skipped with a warning."""
        self.iter = state_dict["iteration"]
        first_of_class = {type(hook).__qualname__: hook for hook in reversed(self._hooks)}
        for name, state in state_dict.get("hooks", {}).items():
            if name in first_of_class:
                first_of_class[name].load_state_dict(state)  # type: ignore[attr-defined]
            else:
                logger.warning("The checkpoint has a state of %r, but this run has no such hook: skipped.", name)


class SimpleTrainer(TrainerBase):
    """Gradient descent with one model, one data loader and one optimizer.

    Args:
        model: in training mode it maps a batch to a loss (scalar tensor) or to losses by name, whose sum counts.
        data_loader: endless, or at least as long as the run.
        optimizer: of the model's parameters.
        gather_metric_period: collect losses and times, which waits for GPU and processes, of every so many iterations.
        zero_grad_before_forward: drop the old gradients early, not between forward and backward pass.
        async_write_metrics: collect and store them in a thread. What it raises is raised here at the next time.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.data_loader, self.optimizer = model.train(), data_loader, optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._thread = ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        self._writing: Future | None = None

    @cached_property
    def _data_loader_iter(self) -> Iterator:
        return iter(self.data_loader)  # not before the first batch: it may start processes

    def run_step(self) -> None:
        """One batch, one step of the optimizer; an AssertionError for a model that is not in training mode."""
        self._descend(nullcontext())

    def _descend(self, precision: AbstractContextManager, scaler: torch.amp.GradScaler | None = None) -> None:
        """``run_step`` with the forward pass in the context ``precision``, and losses scaled for float16."""
        assert self.model.training, "The model is in eval mode. Call model.train() before the next training step."
        waiting = Timer()
        batch = next(self._data_loader_iter)
        data_time = waiting.seconds()

        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with precision:
            losses = self.model(batch)
            losses = {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses
            objective = sum(losses.values())
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        (objective if scaler is None else scaler.scale(objective)).backward()
        self.after_backward()

        self._store_metrics(losses, data_time)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _store_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """``write_metrics`` when ``gather_metric_period`` and where ``async_write_metrics`` say."""
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period:
            return
        write = partial(self.write_metrics, loss_dict, data_time, iteration, prefix)
        if self._thread is None:
            write()
            return
        if self._writing is not None and self._writing.done():
            self._writing.result()
        self._writing = self._thread.submit(contextvars.copy_context().run, write)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Store the means of the losses over all processes, and how long these waited for data.

        The main process stores ``data_time`` (s, of the slowest), ``total_loss`` behind ``prefix`` and, of two or more,
        the single losses; each process stores its own ``rank_data_time``. ``loss_dict`` has scalar tensors, with the
        same names in all processes. FloatingPointError, on the main process, if the total is not finite.
        """
        put = partial(get_event_storage().put_scalar, cur_iter=cur_iter)
        put("rank_data_time", data_time)
        names = sorted(loss_dict)
        reports = comm.gather([data_time, *(loss_dict[name].detach().cpu().item() for name in names)])
        if not reports:  # not the main process
            return
        table = np.array(reports)  # processes x (time, losses)
        put("data_time", float(table[:, 0].max()))
        means = dict(zip(names, table[:, 1:].mean(axis=0).tolist()))
        total = sum(means[name] for name in loss_dict)
        if not isfinite(total):
            raise FloatingPointError(f"The losses of iteration {cur_iter} are not finite: {means}")
        for name, value in {f"{prefix}total_loss": total, **(means if len(means) > 1 else {})}.items():
            put(name, value)

    def after_train(self) -> None:
        """Wait for the numbers that the thread still writes, then tell the hooks."""
        wait([self._writing] if self._writing is not None else [])
        super().after_train()

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Go on with the batches of another loader; the old one is let go first, and with it its processes."""
        self.__dict__.pop("_data_loader_iter", None)
        self.data_loader = None  # type: ignore[assignment]
        self.data_loader = data_loader_builder()

    def state_dict(self) -> dict[str, Any]:
        """That of :class:`TrainerBase`, and ``optimizer``."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` in mixed precision, on GPUs (AssertionError without, or for several in one process).

    Args:
        grad_scaler: scales the losses against float16's underflow; a new one if not given.
        precision: the lower precision of the forward pass.
        log_grad_scaler: store the scale as ``[metric]grad_scaler``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        gpus = getattr(model, "device_ids", None) or []
        assert len(gpus) < 2, f"Mixed precision needs one process for each GPU; this model is on {len(gpus)} of them."
        options = gather_metric_period, zero_grad_before_forward, async_write_metrics
        super().__init__(model, data_loader, optimizer, *options)
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision, self.log_grad_scaler = precision, log_grad_scaler

    def run_step(self) -> None:
        """One batch, one step of the optimizer unless scaled gradients overflow; raises as ``SimpleTrainer`` does."""
        assert torch.cuda.is_available(), "SOLVER.AMP and AMPTrainer need a GPU, but CUDA finds none."
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self._descend(torch.autocast("cuda", dtype=self.precision), self.grad_scaler)

    def state_dict(self) -> dict[str, Any]:
        """That of :class:`SimpleTrainer`, and ``grad_scaler``."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
