"""Counts of parameters and multiply-adds."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def gmacs(module: nn.Module, side: int = 224) -> float:
    """Multiply-adds, in 1e9, of convolutions and linear layers; counted without computing anything."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2e9
