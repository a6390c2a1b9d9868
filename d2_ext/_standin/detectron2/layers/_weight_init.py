"""Initial weights of convolutions, for backbones; ``fvcore.nn`` has them too, but takes long to import."""

from __future__ import annotations

from torch import nn


def msra_fill(conv: nn.Module) -> None:
    """Normal weights of variance 2 / (outputs x kernel area), for a ReLU behind them (arXiv:1502.01852); no bias."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    _clear_bias(conv)


def xavier_fill(conv: nn.Module) -> None:
    """Uniform weights of variance 1 / (inputs x kernel area), which is Caffe2's "XavierFill"; no bias."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    _clear_bias(conv)


def _clear_bias(conv: nn.Module) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
