"""Products of rows, and kernels laid out for them."""

from __future__ import annotations

from d2_ext.layers.sparse.linear import compute_dtype, gram, row_linear, tap_major, to_channels_last, uses_onednn

import pytest
import torch
import torch.nn.functional as F
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "bias"), [(0, True), (1, False), (37, True)])
def test_every_kernel_gives_the_product(dtype: torch.dtype, rows: int, bias: bool) -> None:
    x, weight = torch.randn(rows, 24, dtype=dtype), torch.randn(10, 24, dtype=dtype)
    offset = torch.randn(10, dtype=dtype) if bias else None
    expected = F.linear(x.double(), weight.double(), offset if offset is None else offset.double())
    with torch.no_grad():
        fast = row_linear(x, weight, offset)
    slow = row_linear(x, weight, offset)  # with gradients enabled: another kernel
    for found in (fast, slow):
        assert found.dtype == dtype
        tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradients_are_kept_where_they_are_wanted() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert not uses_onednn(x)
    row_linear(x, torch.ones(2, 4), None).sum().backward()
    assert torch.equal(x.grad, torch.full((3, 4), 2.0))


def test_the_kernel_of_a_channels_last_convolution_is_a_matrix_without_a_copy() -> None:
    conv = nn.Conv2d(5, 7, 3)
    before = conv.weight.detach().clone()
    copied = tap_major(conv.weight)
    to_channels_last(conv)
    assert torch.equal(conv.weight, before)
    matrix = tap_major(conv.weight)
    assert matrix.data_ptr() == conv.weight.data_ptr()
    assert torch.equal(matrix, copied)
    # row 2, tap (1, 2) is the sixth of nine, channel 3
    assert matrix[2, 5 * 5 + 3] == before[2, 3, 1, 2]
    conv.load_state_dict({"weight": before * 2, "bias": conv.bias.detach()})
    assert tap_major(conv.weight).data_ptr() == conv.weight.data_ptr()  # loading keeps the order


def test_autocast_decides_the_dtype() -> None:
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32
    assert compute_dtype(x.bfloat16()) == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [3, 64, 256])
def test_the_gram_matrix_is_the_same_by_every_library(threads: int, dtype: torch.dtype, channels: int) -> None:
    before = torch.get_num_threads()
    x = torch.randn(500, channels, dtype=dtype)
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            found = gram(x)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.double(), x.double().T @ x.double(), rtol=1e-5, atol=1e-3)
