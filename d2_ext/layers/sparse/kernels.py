"""Which kernel convolves rows on a CUDA device: PyTorch's products of gathered rows, or the Triton kernel.

Nothing is assumed about a device. The first time that a shape (dtype, channels, rows rounded up to a power of two) is
met, PyTorch's way and the Triton kernel with several tile sizes compute it and are timed. The Triton kernel is taken
for that shape only if it was faster and gave the same numbers to rounding; a kernel that cannot be compiled is never
taken. ``D2_EXT_SPARSE_KERNEL`` changes the rule:

    auto    as described (the default)
    torch   PyTorch's way always: the same bits in every process
    triton  the fastest tile sizes of the Triton kernel, without comparing with PyTorch's

On other devices PyTorch's way is the only one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import cache, partial

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.context_norm import Epilogue
from d2_ext.layers.sparse.layer import RowEpilogue

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

VARIABLE = "D2_EXT_SPARSE_KERNEL"
RULES = ("auto", "torch", "triton")
TORCH = "torch"
# Largest difference in relation to the largest value: sums of thousands of products in another order.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TIMED_CALLS = 5
_chosen: dict[tuple[object, ...], str] = {}

Kernel = Callable[[], Tensor]


def kernel_rule() -> str:
    """The rule of ``D2_EXT_SPARSE_KERNEL``.

    Raises:
        ConfigError: it is none of the three.
    """
    rule = os.environ.get(VARIABLE, "auto")
    if rule not in RULES:
        raise ConfigError(f"The environment variable {VARIABLE} is {rule!r}. Expected one of {', '.join(RULES)}.")
    return rule


def run_fastest(
    key: tuple[object, ...], torch_kernel: Kernel, others: Mapping[str, Kernel], dtype: torch.dtype
) -> Tensor:
    """Compute by the kernel that is the fastest for a shape; measured once, then remembered.

    Args:
        key: what the choice depends on.
        torch_kernel: PyTorch's way, which others must agree with.
        others: further kernels of the same result.
        dtype: of the result.
    """
    rule = kernel_rule()
    kernels = {TORCH: torch_kernel, **others}
    if rule == TORCH or not others:
        return torch_kernel()
    case = (rule, *key)
    if case not in _chosen:
        _chosen[case] = _measure(kernels, dtype, keep_torch=rule == "auto")
        logger.info("Sparse convolution of shape %s: %s kernel.", key, _chosen[case])
    return kernels[_chosen[case]]()


def _measure(kernels: Mapping[str, Kernel], dtype: torch.dtype, *, keep_torch: bool) -> str:
    """Name of the fastest kernel that works; PyTorch's counts if it is kept, or if no other works."""
    expected = kernels[TORCH]().float()
    seconds = {}
    for name, kernel in kernels.items():
        try:
            error = (kernel().float() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
        except Exception as failure:  # compilers fail in many ways; what remains works
            logger.warning("The kernel %s does not work on this device (%s); it is not used.", name, failure)
            continue
        if not error <= TOLERANCE[dtype]:
            logger.warning("The kernel %s is off by %.1e of the largest value; it is not used.", name, error)
            continue
        seconds[name] = _seconds(kernel)
    if not keep_torch and len(seconds) > 1:
        del seconds[TORCH]
    return min(seconds, key=seconds.__getitem__)


def _seconds(kernel: Kernel) -> float:
    """Seconds of a call on the current CUDA device."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    kernel()
    start.record()
    for _ in range(TIMED_CALLS):
        kernel()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000 / TIMED_CALLS


@cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def triton_kernels(
    table: Tensor, neighbors: Tensor, weight: Tensor, bias: Tensor | None, epilogue: RowEpilogue | None
) -> dict[str, Kernel]:
    """The Triton kernel with each of its tile sizes; none without Triton.

    The arguments are those of ``triton_gather_conv`` without the tiles.
    """
    if not has_triton():
        return {}
    from d2_ext.layers.sparse.triton_conv import CANDIDATES, Tiles, triton_gather_conv

    if epilogue is None or isinstance(epilogue, Epilogue):
        convolve = partial(triton_gather_conv, table, neighbors, weight, bias, epilogue)
        return {f"triton {tiles}": partial(convolve, tiles) for tiles in CANDIDATES}

    def then_norm(tiles: Tiles) -> Tensor:  # a tile of the kernel has not all channels of its rows
        return epilogue(triton_gather_conv(table, neighbors, weight, bias, None, tiles), slice(None))

    return {f"triton {tiles}": partial(then_norm, tiles) for tiles in CANDIDATES}
