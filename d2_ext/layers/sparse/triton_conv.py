"""Sparse 3x3 convolution on a GPU in one Triton kernel: rows are gathered inside the matrix product.

An implicit GEMM: a program makes a tile of rows x output channels. For each of the nine taps it reads the rows' numbers
in the table, then tiles of those rows and of the kernel, and adds their product in float32. Bias and what follows the
convolution (``Epilogue``) are applied before the tile is written, so that neither the nine-fold columns nor the
convolution's own output ever exist in memory.

Imported only where it is used (``kernels.py``), because Triton is not installed everywhere. With
``TRITON_INTERPRET=1`` set before the import, it also runs on a CPU, slowly; the tests do so.
"""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.layers.sparse.context_norm import Epilogue

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Sizes of a program's tiles, and how it is run: rows, output channels, input channels; warps and stages."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


CANDIDATES = (Tiles(128, 128, 64, 8, 3), Tiles(64, 128, 64, 4, 3), Tiles(64, 64, 32, 4, 4), Tiles(16, 64, 64, 4, 3))


@triton.jit
def _convolve(  # type: ignore[no-untyped-def]  # Triton takes annotations for types of its own
    table,
    numbers,
    weight,
    bias,
    scale,
    shift,
    segment,
    context,
    out,
    num_rows,
    channels,
    num_outputs,
    HAS_BIAS: tl.constexpr,
    HAS_EPILOGUE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    row_ok, output_ok = row < num_rows, output < num_outputs
    row64, output64 = row.to(tl.int64), output.to(tl.int64)
    total = tl.full((ROWS, OUTPUTS), 0, tl.float32)
    for tap in range(9):
        number = tl.load(numbers + row64 * 9 + tap, mask=row_ok, other=0)
        for start in range(0, channels, INPUTS):
            channel = start + tl.arange(0, INPUTS)
            channel_ok = channel < channels
            x_ok = row_ok[:, None] & channel_ok[None, :]
            x = tl.load(table + number[:, None] * channels + channel[None, :], mask=x_ok, other=0.0)
            w_ok = channel_ok[:, None] & output_ok[None, :]
            w_at = weight + output64[None, :] * (9 * channels) + tap * channels + channel[:, None]
            w = tl.load(w_at, mask=w_ok, other=0.0)
            if WIDEN:
                x, w = x.to(tl.float32), w.to(tl.float32)
            total = tl.dot(x, w, total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + output, mask=output_ok, other=0.0).to(tl.float32)[None, :]
    ok = row_ok[:, None] & output_ok[None, :]
    at = row64[:, None] * num_outputs + output[None, :]
    if HAS_EPILOGUE:
        affine = tl.load(segment + row64, mask=row_ok, other=0)[:, None] * num_outputs + output[None, :]
        total = total * tl.load(scale + affine, mask=ok, other=0.0) + tl.load(shift + affine, mask=ok, other=0.0)
        total = tl.maximum(total + tl.load(context + at, mask=ok, other=0.0).to(tl.float32), 0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=ok)


def triton_gather_conv(
    table: Tensor, neighbors: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue | None, tiles: Tiles
) -> Tensor:
    """Convolve at some positions only.

    Args:
        table: features (m + 1, C), float32, float16 or bfloat16, contiguous; the last row zeros.
        neighbors: numbers in the table (n, 9), int64.
        weight: tap-major kernel (C', 9 * C) in the dtype of the table.
        bias: (C',) or None.
        epilogue: what follows the convolution; nothing if None.
        tiles: how the work is cut; changes the result by rounding only.

    Returns:
        (n, C') in the dtype of the table. Products are added in float32; float32 itself is multiplied exactly, unless
        ``torch.backends.cuda.matmul.allow_tf32`` is set.
    """
    count, channels, outputs = len(neighbors), table.shape[1], weight.shape[0]
    out = table.new_empty((count, outputs))
    if count == 0:
        return out
    unused = out  # a pointer that is never read
    parts: tuple[Tensor, ...] = (unused,) * 4
    if epilogue is not None:
        values = (epilogue.scale, epilogue.shift, epilogue.segment, epilogue.context)
        parts = tuple(v.contiguous() for v in values)
    interpreted = not isinstance(_convolve, triton.JITFunction)  # its product takes bfloat16 for integers (Triton 3.9)
    exact = table.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    grid = (triton.cdiv(count, tiles.rows), triton.cdiv(outputs, tiles.outputs))
    _convolve[grid](
        table,
        neighbors.contiguous(),
        weight.contiguous(),
        unused if bias is None else bias,
        *parts,
        out,
        count,
        channels,
        outputs,
        HAS_BIAS=bias is not None,
        HAS_EPILOGUE=epilogue is not None,
        PRECISION="ieee" if exact else "tf32",
        WIDEN=interpreted and table.dtype == torch.bfloat16,
        ROWS=tiles.rows,
        OUTPUTS=tiles.outputs,
        INPUTS=tiles.inputs,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out
