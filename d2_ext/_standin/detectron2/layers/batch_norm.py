"""Normalisation layers, and the names they have in configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers.wrappers import BatchNorm2d
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and fixed weight and bias, all of them buffers.

    Checkpoints of Caffe2 hold weight and bias only; the statistics then count as 0 and 1.
    """

    _version = 3  # below 2 the statistics are missing from the state

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        zeros, ones = torch.zeros(num_features), torch.ones(num_features)
        initial = {
            "weight": ones,
            "bias": zeros,
            "running_mean": zeros.clone(),
            "running_var": ones - eps,  # forward adds eps: a new layer is exactly the identity
            "num_batches_tracked": None,  # set, and saved, if converted from a batch norm
        }
        for name, value in initial.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape and dtype."""
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would also keep what the gradients of weight and bias need.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + bias.view(1, -1, 1, 1).to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        version = local_metadata.get("version")
        if version is None or version < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace the batch norms inside ``module``, in place; a batch norm itself gives a new module."""
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            return _convert_children(module, cls.convert_frozen_batchnorm)
        frozen = cls(module.num_features, module.eps)
        if module.affine:
            frozen.weight.data = module.weight.data.clone()
            frozen.bias.data = module.bias.data.clone()
        frozen.running_mean.data = module.running_mean.data
        frozen.running_var.data = module.running_var.data
        frozen.num_batches_tracked = module.num_batches_tracked
        return frozen

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """The way back: replace the frozen batch norms inside ``module`` by trainable ones."""
        if not isinstance(module, FrozenBatchNorm2d):
            return _convert_children(module, cls.convert_frozenbatchnorm2d_to_batchnorm2d)
        norm = nn.BatchNorm2d(module.num_features, module.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data = getattr(module, name).data.clone()
        norm.num_batches_tracked = module.num_batches_tracked
        return norm


def _convert_children(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for name, child in module.named_children():
        converted = convert(child)
        if converted is not child:
            module.add_module(name, converted)
    return module


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Make a norm layer.

    Args:
        norm: BN, SyncBN, FrozenBN, GN (32 groups), LN (over the channels), nnSyncBN, naiveSyncBN, naiveSyncBN_N, or a
            callable; ``None`` and ``""`` give ``None``.
        out_channels: number of channels of its input.

    Raises:
        KeyError: for another name.
    """
    if norm is None or norm == "":
        return None
    return (NORMS[norm] if isinstance(norm, str) else norm)(out_channels)


class NaiveSyncBatchNorm(BatchNorm2d):
    """Batch norm over all processes by averaging their means and mean squares; correct gradients, slower than SyncBN.

    The statistics are the true ones if all processes have batches of equal (N, H, W); with ``stats_mode="N"`` the
    processes count by their N, which may be 0.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert stats_mode in ("", "N"), f"stats_mode is '' or 'N', not {stats_mode!r}."
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape and dtype."""
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        assert self._stats_mode == "N" or len(input) > 0, 'NaiveSyncBatchNorm(stats_mode="") takes no empty batch.'
        x = input.float() if input.dtype == torch.float16 else input  # squares overflow in half precision
        mean, mean_square, momentum = self._statistics(x)
        var = mean_square - mean * mean
        with torch.no_grad():
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (var - self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        bias = self.bias - mean * scale
        return (x * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)).to(input.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Mean and mean square (C,) over all processes, and the weight with which they enter the running ones."""
        from torch.distributed.nn.functional import all_reduce  # absent where torch is built without processes

        if len(x) > 0:
            local = torch.cat([x.mean(dim=(0, 2, 3)), (x * x).mean(dim=(0, 2, 3)), x.new_ones(1)])  # (2C + 1,)
        else:
            local = x.new_zeros(2 * x.shape[1] + 1) + x.sum()  # with a gradient, since the other processes have one
        total = all_reduce(local * (len(x) if self._stats_mode == "N" else 1))
        mean, mean_square, count = total.split([x.shape[1], x.shape[1], 1])
        count = count.detach()
        momentum = self.momentum * count.clamp(max=1)  # no process has data: no update
        return mean / count.clamp(min=1), mean_square / count.clamp(min=1), momentum


class CycleBatchNormList(nn.ModuleList):
    """Several batch norms that take turns, with one weight and bias for all (arXiv:2105.07576, Sec. 5.2).

    For a head that runs over the levels of a pyramid: each level has statistics of its own, as long as the module is
    always called once a level, in the same order.
    """

    def __init__(self, length: int, bn_class: type[nn.Module] = nn.BatchNorm2d, **kwargs: Any) -> None:
        """Make ``length`` norms of ``bn_class(**kwargs)``; ``affine=False`` leaves out weight and bias."""
        self._affine = kwargs.pop("affine", True)
        super().__init__([bn_class(**kwargs, affine=False) for _ in range(length)])
        if self._affine:
            self.weight = nn.Parameter(torch.ones(self[0].num_features))
            self.bias = nn.Parameter(torch.zeros(self[0].num_features))
        self._pos = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape by the next norm in turn."""
        x = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        if not self._affine:
            return x
        return x * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the norms."""
        return f"affine={self._affine}"


class LayerNorm(nn.Module):
    """Layer norm over the channels of each location of (N, C, H, W)."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.normalized_shape = eps, (normalized_shape,)
        for name, fill in (("weight", torch.ones), ("bias", torch.zeros)):
            self.register_parameter(name, nn.Parameter(fill(normalized_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.pow(2).mean(dim=1, keepdim=True)
        return self.weight[:, None, None] * (centred / torch.sqrt(variance + self.eps)) + self.bias[:, None, None]


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}
