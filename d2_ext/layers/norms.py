"""Norm layers by name, with the mistakes of a config caught before the first batch."""

from __future__ import annotations

from collections.abc import Callable

from d2_ext.errors import ConfigError, did_you_mean

from detectron2.layers import FrozenBatchNorm2d, get_norm
from torch import nn

NORM_NAMES = ("", "FrozenBN", "BN", "SyncBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
GROUP_NORM_GROUPS = 32  # of "GN" in Detectron2's get_norm

NormSpec = str | Callable[[int], nn.Module]


def make_norm(norm: NormSpec, channels: int) -> nn.Module | None:
    """Make a norm layer as Detectron2's ``get_norm`` does.

    Args:
        norm: one of ``NORM_NAMES``, or a callable from the number of channels to a module.
        channels: number of channels of the (N, C, H, W) maps it gets.

    Returns:
        The layer; None for ``""``.

    Raises:
        ConfigError: for an unknown name, or ``"GN"`` with channels that are no multiple of 32.
    """
    if isinstance(norm, str):
        if norm not in NORM_NAMES:
            raise ConfigError(f"NORM: no norm layer {norm!r}. {did_you_mean(norm, NORM_NAMES)}")
        if norm == "GN" and channels % GROUP_NORM_GROUPS:
            raise ConfigError(
                f"NORM 'GN' has {GROUP_NORM_GROUPS} groups, which do not divide a layer of {channels} channels. "
                "Use 'BN', 'SyncBN' or 'FrozenBN', or pass a callable such as lambda c: GroupNorm(16, c)."
            )
    return get_norm(norm, channels)


def freeze_module(module: nn.Module, *, parameters: bool = True) -> nn.Module:
    """Turn every batch norm inside a module into ``FrozenBatchNorm2d`` and stop the gradients of its parameters.

    Args:
        module: changed in place, except if it is a batch norm itself.
        parameters: False converts the norms only and leaves the other parameters trainable.

    Returns:
        The module, or what replaces it.
    """
    if parameters:
        module.requires_grad_(False)
    return FrozenBatchNorm2d.convert_frozen_batchnorm(module)
