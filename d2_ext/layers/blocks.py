"""A chain of residual blocks that can trade computation for memory in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class BlockSequence(nn.Sequential):
    """Blocks one after the other; with ``recompute`` their inner activations are not kept for the backward pass.

    Gradients, batch statistics and random draws equal those without ``recompute``: the second forward of a block
    normalizes with the same batch, but does not update the running statistics again.
    """

    def __init__(self, blocks: Iterable[nn.Module], *, recompute: bool = False) -> None:
        super().__init__(*blocks)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = recomputed(block, x) if self.recompute and self.training else block(x)
        return x


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Run a block and keep only its input for the backward pass, in which the block runs a second time."""
    if not torch.is_grad_enabled():
        return block(x)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _running_statistics_held(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _running_statistics_held(block: nn.Module) -> Iterator[None]:
    """Normalize with the batch, as in training, without a second update of the running statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, batches in kept:
        norm.momentum = 0.0  # the share of the new batch in the running statistics
        norm.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, batches
