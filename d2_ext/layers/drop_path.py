"""Stochastic depth.

Paper: Deep Networks with Stochastic Depth (arXiv:1603.09382), per sample and scaled so that the mean is kept.
"""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops the residual branch of whole samples in training; the identity in evaluation.

    Args:
        rate: probability in [0, 1) that a sample's branch is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ...) to (N, ...): a kept sample is divided by the probability of being kept."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def linear_drop_rates(rate: float, blocks: int) -> list[float]:
    """Rates that rise linearly with depth: 0 for the first block, ``rate`` for the last."""
    return [rate * i / max(blocks - 1, 1) for i in range(blocks)]
