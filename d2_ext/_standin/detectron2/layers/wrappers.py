"""PyTorch's layers and functions, with what detectors need besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, then a norm, then an activation, if there are any."""

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the arguments of ``nn.Conv2d``, and ``norm`` and ``activation`` by keyword."""
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor) -> Tensor:
        for step in (super().forward, self.norm, self.activation):
            x = x if step is None else step(x)
        return x


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` of a list or tuple (else AssertionError), which does not copy a single tensor."""
    if not isinstance(tensors, (list, tuple)):
        raise AssertionError(f"A list or tuple of tensors was expected, not {type(tensors).__name__}.")
    return torch.cat(tensors, dim) if tensors[1:] or not tensors else tensors[0]


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
    """``F.cross_entropy``, but the mean over no targets is 0 with a gradient of 0, not NaN."""
    if reduction == "mean" and not target.numel():
        return 0.0 * input.sum()
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the nonzero elements, one tensor for each dimension."""
    return x.nonzero(as_tuple=True)


def shapes_to_tensor(x: Sequence[int] | Sequence[Tensor], device: torch.device | str | None = None) -> Tensor:
    """Lengths, which are tensors while a model is traced, as one tensor; traceable."""
    if not len(x):
        return torch.empty(0, device=device)
    return torch.stack([torch.as_tensor(length, device=device) for length in x])


@torch.jit.script_if_tracing
def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """``src`` on the device of ``dst``; a traced model looks it up anew in each run."""
    return src.to(dst.device)
