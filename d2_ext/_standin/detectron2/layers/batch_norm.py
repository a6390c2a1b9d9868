"""Norms over the channels of (N, C, H, W) maps, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2._missing import refuse
from detectron2.layers.wrappers import BatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

__getattr__ = refuse(__name__, "NaiveSyncBatchNorm")


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics, scale and shift are constants: buffers, which neither learn nor adapt.

    A new one is the identity. Version 1 of its state had no statistics; reading such a state gives means 0 and
    variances 1.
    """

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        # less eps, so that the variance and eps add up to 1
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - eps}.items():
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # batch_norm would keep its input for gradients of constants; a product and a sum keep C numbers
        factor = torch.rsqrt(self.running_var + self.eps).mul(self.weight)
        shift = self.bias - factor * self.running_mean
        return x * _per_channel(factor).to(x.dtype) + _per_channel(shift).to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *args: Any) -> None:
        if (local_metadata.get("version") or 1) == 1:
            state_dict.setdefault(f"{prefix}running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(f"{prefix}running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every ``BatchNorm2d`` and ``SyncBatchNorm`` in a module, with its numbers and the names of its state.

        Returns:
            ``module``, changed in place; what replaces it if it is a batch norm itself.
        """
        kinds = (BatchNorm2d, nn.SyncBatchNorm)
        frozen = {norm: cls._frozen_copy(norm) for norm in module.modules() if isinstance(norm, kinds)}
        for parent in list(module.modules()):
            parent._modules.update({name: frozen[m] for name, m in parent._modules.items() if m in frozen})
        return frozen.get(module, module)

    @classmethod
    def _frozen_copy(cls, norm: Any) -> FrozenBatchNorm2d:
        copy = cls(norm.num_features, norm.eps).to(norm.running_mean).train(norm.training)
        copy.register_buffer("num_batches_tracked", norm.num_batches_tracked.clone())
        copy.load_state_dict(norm.state_dict(), strict=False)  # a norm without scale and shift lacks these two
        return copy


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _add_affine(module: nn.Module, channels: int) -> None:
    """Give a norm a scale of 1 and a shift of 0 for each channel, both of which learn."""
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        module.register_parameter(name, nn.Parameter(torch.full((channels,), value)))


class LayerNorm(nn.Module):
    """Layer norm over the channels of each location of (N, C, H, W) maps."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        _add_affine(self, normalized_shape)

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(dim=1, keepdim=True)
        deviation = centered.pow(2).mean(dim=1, keepdim=True).add(self.eps).sqrt()
        return self.weight[:, None, None] * (centered / deviation) + self.bias[:, None, None]


class CycleBatchNormList(nn.ModuleList):
    """Batch norms that take turns at the calls, with statistics of their own and one scale and shift for all.

    A head that runs on the levels of a pyramid, always in one order, so keeps the statistics of the levels apart.
    """

    def __init__(self, length: int, bn_class: type[nn.Module] = nn.BatchNorm2d, **kwargs: Any) -> None:
        """Make ``length`` norms by ``bn_class(**kwargs)``, which include ``num_features``."""
        super().__init__([bn_class(**{**kwargs, "affine": False}) for _ in range(length)])
        self._calls = 0
        self.affine = kwargs.get("affine", True)
        if self.affine:
            _add_affine(self, self[0].num_features)

    def forward(self, x: Tensor) -> Tensor:
        turn, self._calls = self._calls % len(self), self._calls + 1
        normed = self[turn](x)
        if not self.affine:
            return normed
        return normed * _per_channel(self.weight) + _per_channel(self.bias)

    def extra_repr(self) -> str:
        return f"affine={self.affine}"


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
    "naiveSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN_N": nn.SyncBatchNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Make a norm by its name (else KeyError) or by a function of the channels; ``""`` and None are no norm."""
    if not norm:
        return None
    return (_NORMS[norm] if isinstance(norm, str) else norm)(out_channels)
