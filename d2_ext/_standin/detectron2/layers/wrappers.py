"""Torch's layers and functions with small additions: norm and activation in a convolution, empty inputs, tracing."""

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
    """``nn.Conv2d`` followed by an optional norm and an optional activation.

    The norm is the sub-module ``norm``, so its weights are ``<name>.norm.weight``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of ``nn.Conv2d`` and, by keyword, ``norm`` (a module) and ``activation`` (a callable)."""
        norm, activation = kwargs.pop("norm", None), kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W'); N may be 0."""
        if x.numel() == 0 and self.training:
            assert not isinstance(self.norm, nn.SyncBatchNorm), "A SyncBatchNorm cannot train on an empty batch."
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        for after in (self.norm, self.activation):
            x = x if after is None else after(x)
        return x


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat``, but a single tensor is returned as it is."""
    assert isinstance(tensors, (list, tuple)), f"cat takes a list, not {type(tensors).__name__}."
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a loss whose mean over nothing is 0, with a gradient, instead of NaN."""

    def loss(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
        if reduction == "mean" and target.numel() == 0:
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return loss


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the non-zero entries, one tensor a dimension."""
    return x.nonzero(as_tuple=True)


def shapes_to_tensor(x: Sequence[int] | Sequence[Tensor], device: torch.device | str | None = None) -> Tensor:
    """Sizes as one integer tensor; while tracing ``x`` holds tensors, and the result depends on them."""
    if torch.jit.is_tracing():
        assert all(isinstance(size, Tensor) for size in x), "Sizes must be tensors while tracing."
        stacked = torch.stack(list(x))
        return stacked if stacked.device == device else stacked.to(device=device)
    return torch.as_tensor(x, device=device)


@torch.jit.script_if_tracing
def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """``src`` on the device of ``dst``; scripted in a trace, which would record today's device as a constant."""
    return src.to(dst.device)
