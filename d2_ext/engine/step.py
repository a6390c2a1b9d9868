"""One step of training: batches in, gradients averaged, losses judged, weights changed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from d2_ext.engine.loss_guard import LossGuard
from d2_ext.engine.precision import Precision
from d2_ext.errors import CheckpointError

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Losses = Mapping[str, torch.Tensor]
Batch = list[dict[str, Any]]


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, with accumulated gradients and a guard of the losses.

    Args:
        model: wrapped for data parallel training, if it is to be.
        data_loader: endless batches.
        optimizer: over the model's parameters.
        precision: of the forward pass.
        guard: asked before each change of the weights.
        accumulate: batches whose gradients make one step. Their mean is taken, as data parallel training does over
            processes: equal to one batch of all their images as far as the divisor of the loss is the same in each.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        precision: Precision,
        guard: LossGuard,
        accumulate: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        self.guard = guard
        self.accumulate = accumulate

    def run_step(self) -> None:
        """One step of the optimizer."""
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]
        data_time = time.perf_counter() - start
        self.guard.remember(self.model)
        self.optimizer.zero_grad()
        losses = [self._accumulate(batch, is_last=n + 1 == len(batches)) for n, batch in enumerate(batches)]
        self.after_backward()
        if not self.guard.allows(self.iter, losses, batches):
            self.guard.undo(self.model)
            self.optimizer.zero_grad()
            return
        self.write_metrics(
            {k: torch.stack([each[k] for each in losses]).mean() for k in losses[0]}, data_time, self.iter
        )
        self._change_weights()

    def _accumulate(self, batch: Batch, *, is_last: bool) -> Losses:
        """Add the gradients of one batch; returns its losses."""
        # Gradients go over the network once a step.
        waits = isinstance(self.model, DistributedDataParallel) and not is_last
        with self.model.no_sync() if waits else nullcontext():
            with self.precision.autocast():
                losses = self.model(batch)
            if isinstance(losses, torch.Tensor):
                losses = {"total_loss": losses}
            total = sum(losses.values()) / self.accumulate
            scaler = self.precision.scaler
            (total if scaler is None else scaler.scale(total)).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _change_weights(self) -> None:
        scaler = self.precision.scaler
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """As of Detectron2's trainers, so that checkpoints go from one to the other."""
        scaler = self.precision.scaler
        return {**super().state_dict(), **({} if scaler is None else {"grad_scaler": scaler.state_dict()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`; a run may turn mixed precision on or off when it is resumed.

        Raises:
            CheckpointError: the optimizer groups its parameters otherwise than when the checkpoint was written.
        """
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            raise CheckpointError(
                f"The optimizer's state in the checkpoint does not fit this run ({error}). Its parameters are grouped "
                "by learning rate and weight decay; a changed SOLVER key, or a version that decays other parameters "
                "(CHANGELOG.md), groups them otherwise. Resume with the version and the keys that the run began with, "
                "or start a new run from its weights: MODEL.WEIGHTS path/to/model.pth, without --resume."
            ) from error
        if self.precision.scaler is not None and "grad_scaler" in state_dict:
            self.precision.scaler.load_state_dict(state_dict["grad_scaler"])
