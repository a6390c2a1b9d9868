"""Models whose weights are drawn in a moment, for tests in which no value matters but that it is finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

DRAWN = 4099  # a prime: rows of a weight, whose lengths are products of small numbers, are all different


@contextmanager
def quick_weights() -> Iterator[None]:
    """Inside, ``normal_`` and ``uniform_`` repeat a few random numbers: drawing millions takes longer than a step."""
    normal, uniform = torch.randn(DRAWN), torch.rand(DRAWN)

    def repeated(numbers: Tensor, tensor: Tensor) -> Tensor:
        count = tensor.numel()
        return tensor.copy_(numbers.repeat(count // DRAWN + 1)[:count].view(tensor.shape))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", lambda x, mean=0.0, std=1.0, **_: repeated(normal * std + mean, x))
        patch.setattr(torch.Tensor, "uniform_", lambda x, a=0.0, b=1.0, **_: repeated(uniform * (b - a) + a, x))
        yield
