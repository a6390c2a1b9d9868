"""Matrix product of rows with the kernel of a convolution, by the fastest kernel of the device.

Which one is a fixed rule, not a measurement at run time: equal inputs give equal bits in every process. The rule comes
from measurements of (n, 4608) x (4608, 512), GFLOP/s on one core of an AMD EPYC (Zen 5): MKL, which ``F.linear`` calls
for float32, 110; oneDNN with the kernel in plain layout 232, packed beforehand 239; dense 3x3 convolution 240. On
Intel CPUs the first two are equal.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """Of which rows oneDNN's inner product takes: none if the build lacks it, or on CPUs it was not measured on.

    In bfloat16 it has no kernel for CPUs without AVX-512, and raises an error there.
    """
    if not (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return ()
    has_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


def uses_onednn(x: Tensor) -> bool:
    """Whether ``row_linear`` takes oneDNN's kernel for these rows: x86 CPU, float32 or bfloat16, no gradient."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and bool(torch.backends.mkldnn.enabled)
        and x.dtype in _onednn_dtypes()
    )


def row_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias`` for rows x (n, C), weight (C', C) and bias (C',) of one dtype: (n, C')."""
    if uses_onednn(x) and len(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def gram(x: Tensor) -> Tensor:
    """Compute ``x.T @ x`` for rows x (n, C): (C, C)."""
    if x.shape[1] >= 256:
        # oneDNN wants a transposed copy, which is small beside the product only if there are many channels.
        return row_linear(x.T.contiguous(), x.T.contiguous(), None)
    if not uses_onednn(x) or torch.get_num_threads() == 1:
        return torch.mm(x.T, x)
    # Otherwise the gradient of a 1x1 kernel, whose input and output gradient are both x. MKL, which mm calls, has
    # threads of its own; they and those of oneDNN get into each other's way (moments of 67 200 rows of 64 channels, two
    # threads: 12 to 16 ms, with oneDNN 8).
    image = x.view(1, 1, len(x), -1).permute(0, 3, 1, 2)
    kernel = x.new_empty((x.shape[1], x.shape[1], 1, 1))
    only_kernel = [False, True, False]
    options = [1, 1], [0, 0], [1, 1], False, [0, 0], 1, only_kernel
    return torch.ops.aten.convolution_backward(image, image, kernel, None, *options)[1][:, :, 0, 0]


def tap_major(weight: Tensor) -> Tensor:
    """Kernel (C', C, h, w) as a matrix (C', h*w*C) for rows that hold h*w neighbors of C channels each.

    A view, without a copy, if the kernel lies in memory in channels-last order (see ``to_channels_last``).
    """
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def to_channels_last(module: nn.Module) -> nn.Module:
    """Lay the kernels of all convolutions below a module out in channels-last order, in place.

    Values, shapes, names and checkpoints stay what they were; loading a checkpoint keeps the order.
    """
    return module.to(memory_format=torch.channels_last)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which a convolution of x works here: autocast's if it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
