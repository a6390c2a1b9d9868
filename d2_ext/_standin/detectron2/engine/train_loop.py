"""The training loop, and the hooks that it calls."""

from __future__ import annotations

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2.utils.logger import _log_api_usage
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["HookBase", "TrainerBase", "SimpleTrainer", "AMPTrainer"]


class HookBase:
    """Something that is done at certain points of the loop; a subclass overrides what it needs.

    The order is ``before_train``, then for each iteration ``before_step``, the step (with ``after_backward`` in it),
    ``after_step``; and ``after_train`` at the end, also after an error (``trainer.iter`` is ``max_iter`` only if all
    went well). ``before_step`` should be quick: its time is not counted as the hooks' time.
    """

    trainer: TrainerBase = None  # type: ignore[assignment]  # a weak reference, set when the hook is registered

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration, and after an error."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called between the gradients and the optimizer's step, by the trainer that runs the step."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint should keep; a subclass with state has ``load_state_dict`` too."""
        return {}


class TrainerBase:
    """A loop with hooks; a subclass says in ``run_step`` what an iteration does.

    Attributes:
        iter: current iteration, from 0.
        start_iter: first iteration of this run.
        max_iter: iteration to stop before.
        storage: events of the run; exists from :meth:`train` on.
    """

    max_iter: int
    storage: EventStorage

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        _log_api_usage("trainer." + type(self).__name__)

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Append hooks, which are called in this order; None is skipped."""
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), hook
            hook.trainer = weakref.proxy(self)  # trainer and hook must not keep each other alive
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from ``start_iter`` to ``max_iter - 1``."""
        logging.getLogger(__name__).info(f"Starting training from iteration {start_iter}")
        self.start_iter, self.max_iter = start_iter, max_iter
        self.iter = start_iter
        with EventStorage(start_iter) as storage:
            self.storage = storage
            try:
                self._run_all(range(start_iter, max_iter))
            except Exception as error:
                logging.getLogger(__name__).error("Exception during training:", exc_info=error)
                raise
            finally:
                self.after_train()

    def _run_all(self, iterations: Iterable[int]) -> None:
        """Everything but ``after_train``; the iteration ends up behind the last one only if nothing failed."""
        self.before_train()
        for number in iterations:
            self.iter = number
            self._run_one()
        self.iter += 1

    def _run_one(self) -> None:
        self.before_step()
        self.run_step()
        self.after_step()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter  # both agree during the whole step
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The iteration, and the states of hooks by class name (of several hooks of a class, the first)."""
        # From the last hook to the first, so that of several hooks of a class the first one stays.
        found = [(type(hook).__qualname__, hook.state_dict()) for hook in reversed(self._hooks)]
        states = {name: state for name, state in found if state}
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`; states of hooks that are not registered are ignored with a warning."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                message = f"Cannot find the hook '{name}', its state_dict is ignored."
                logging.getLogger(__name__).warning(message)
            else:
                hook.load_state_dict(state)  # type: ignore[attr-defined]


class SimpleTrainer(TrainerBase):
    """One model, one data source, one optimizer: forward, backward, step.

    Args:
        model: takes what the loader yields, returns a loss or a dict of losses; is set to training mode.
        data_loader: yields at least as many batches as there are iterations.
        optimizer: of the model's parameters.
        gather_metric_period: iterations between the metrics that are gathered from all processes and stored.
        zero_grad_before_forward: clear gradients before the forward pass instead of after it.
        async_write_metrics: gather and store metrics in a thread.
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
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator | None = None
        self.optimizer, self.zero_grad_before_forward = optimizer, zero_grad_before_forward
        self.gather_metric_period, self.async_write_metrics = gather_metric_period, async_write_metrics
        # One worker, so that metrics are written in order; it starts no thread before the first task.
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def run_step(self) -> None:
        """One iteration."""
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        batch, waited = self._next_batch()
        by_name, total = self._forward_with_cleared_gradients(batch)
        self._backward(total)
        self.after_backward()
        # Before the optimizer's step: in this thread, a stored loss that is not finite ends the run right here.
        self._report(by_name, waited)
        self._optimizer_step()

    def _next_batch(self) -> tuple[Any, float]:
        """A batch, and the seconds that it took to get."""
        asked_at = time.perf_counter()
        batch = next(self._data_loader_iter)
        return batch, time.perf_counter() - asked_at

    def _forward_with_cleared_gradients(self, batch: Any) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
        """Forward pass; old gradients are gone before it (needs less memory) or after it."""
        clear = self.optimizer.zero_grad
        if self.zero_grad_before_forward:
            clear()
            return self._forward(batch)
        result = self._forward(batch)
        clear()
        return result

    def _report(self, by_name: Mapping[str, torch.Tensor], waited: float) -> None:
        """Store the metrics, in the thread if there is to be one."""
        if not self.async_write_metrics:
            self._write_metrics(by_name, waited)
            return
        self.concurrent_executor.submit(self._write_metrics, by_name, waited, iter=self.iter)  # iter goes on meanwhile

    def _forward(self, data: Any) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
        """The losses by name, and their sum."""
        losses = self.model(data)
        if isinstance(losses, torch.Tensor):
            return {"total_loss": losses}, losses
        return losses, sum(losses.values())

    def _backward(self, losses: torch.Tensor) -> None:
        losses.backward()

    def _optimizer_step(self) -> None:
        self.optimizer.step()

    @property
    def _data_loader_iter(self) -> Iterator:
        if self._data_loader_iter_obj is None:  # made at first use: it may start worker processes
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Drop the data loader, then build another one."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period:
            return
        try:
            SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix)
        except Exception:
            logging.getLogger(__name__).exception("Exception in writing metrics: ")
            raise

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Average losses over the processes and store them; all processes have to call this.

        Args:
            loss_dict: scalar losses; a single one is stored as ``total_loss`` only.
            data_time: seconds this process waited for data; stored as their maximum over the processes.
            cur_iter: iteration they belong to.
            prefix: put in front of ``total_loss``.

        Raises:
            FloatingPointError: on the main process, if the losses are not finite.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        own = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        gathered = comm.gather({**own, "data_time": data_time})
        if not comm.is_main_process():
            return
        slowest = np.max([metrics.pop("data_time") for metrics in gathered])
        storage.put_scalar("data_time", slowest, cur_iter=cur_iter)
        means = {name: np.mean([metrics[name] for metrics in gathered]) for name in gathered[0]}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self) -> None:
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)


class AMPTrainer(SimpleTrainer):
    """Like :class:`SimpleTrainer` with mixed precision on CUDA.

    Args:
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics: as there.
        grad_scaler: scales the loss; a default one for None.
        precision: of the operations that autocast lowers.
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
        devices = model.device_ids if isinstance(model, DistributedDataParallel) else None
        is_multi_device = isinstance(model, DataParallel) or len(devices or ()) > 1
        assert not is_multi_device, "AMPTrainer does not support single-process multi-device training!"
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        super().run_step()

    def _forward(self, data: Any) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
        with torch.autocast("cuda", dtype=self.precision):
            return super()._forward(data)

    def _backward(self, losses: torch.Tensor) -> None:
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _optimizer_step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
