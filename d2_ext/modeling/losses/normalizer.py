"""Divisors of the losses, averaged over the workers and, where they move, kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from detectron2.utils import comm
from torch import Tensor, nn

_ALONE = ContextVar("alone", default=False)


@contextmanager
def each_worker_alone() -> Iterator[None]:
    """Context in which :func:`average_over_workers` gives each worker its own values, and waits for nobody."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def average_over_workers(*values: Tensor | float) -> list[Tensor]:
    """Average scalars over all workers in one reduction.

    Every worker has to call this equally often, also one without a positive, or the others wait forever.

    Args:
        values: scalars; at least one is a tensor, and the result lives on its device.

    Returns:
        One scalar tensor per value, without gradient.
    """
    device = next(value.device for value in values if isinstance(value, Tensor))
    total = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device).detach() for value in values])
    world_size = comm.get_world_size()
    if world_size > 1 and not _ALONE.get():
        torch.distributed.all_reduce(total)
        total = total / world_size
    return list(total.unbind())


class MovingAverage(nn.Module):
    """Exponential moving average of a scalar, part of the state dict, so that a resumed run goes on with it.

    Args:
        start: first value.
        momentum: weight of the old value in an update.
    """

    def __init__(self, start: float = 100.0, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.tensor(float(start)))

    @torch.no_grad()
    def forward(self, value: Tensor) -> Tensor:
        """Take a new value in, in training mode only, and return the average after it."""
        if self.training:
            self.value.mul_(self.momentum).add_(value.to(self.value), alpha=1 - self.momentum)
        return self.value.clone()
