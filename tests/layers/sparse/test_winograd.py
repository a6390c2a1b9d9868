"""Winograd's convolution of tiles equals the direct one."""

from __future__ import annotations

from d2_ext.layers.sparse.winograd import convolve_tiles, tile_kernel

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_equal_the_direct_convolution(dtype: torch.dtype, bias: bool) -> None:
    weight = torch.randn(7, 5, 3, 3, dtype=dtype)
    offset = torch.randn(7, dtype=dtype) if bias else None
    windows = torch.randn(11, 5, 4, 4, dtype=dtype)
    with torch.no_grad():
        found = convolve_tiles(windows.permute(0, 2, 3, 1).reshape(11, -1), tile_kernel(weight), offset)
    expected = F.conv2d(windows, weight, offset).permute(2, 3, 0, 1).reshape(4, 11, 7)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_integers_come_out_exactly() -> None:
    windows = torch.arange(16.0).view(1, 16)  # one channel
    kernel = tile_kernel(torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 0, 2]).view(1, 1, 3, 3))  # twice the lower right one
    assert convolve_tiles(windows, kernel, None).flatten().tolist() == [20.0, 22.0, 28.0, 30.0]


def test_memory_is_used_again() -> None:
    memory = torch.empty(4 * 4 * 6 * 5)
    weight = torch.randn(6, 5, 3, 3)
    kernel = tile_kernel(weight, memory)
    assert kernel.data_ptr() == memory.data_ptr()
    assert torch.equal(kernel, tile_kernel(weight))
    fewer = tile_kernel(weight[:2], memory)  # of fewer output channels
    assert fewer.data_ptr() == memory.data_ptr()
    assert torch.equal(fewer, tile_kernel(weight[:2]))


def test_a_kernel_of_many_channels_is_transformed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(5, 3, 3, 3)
    whole = tile_kernel(weight)
    monkeypatch.setattr("d2_ext.layers.sparse.winograd.KERNEL_CHANNELS", 2)
    assert torch.equal(tile_kernel(weight), whole)
