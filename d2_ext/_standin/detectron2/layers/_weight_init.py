"""Initial weights of convolutions, as Caffe2 named them."""

from __future__ import annotations

from torch import nn


def msra_fill(conv: nn.Module) -> None:
    """Normal with variance 2 / fan-out (arXiv:1502.01852); bias 0."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(conv)


def xavier_fill(conv: nn.Module) -> None:
    """Uniform with variance 1 / fan-in; bias 0."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    _zero_bias(conv)


def _zero_bias(conv: nn.Module) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
