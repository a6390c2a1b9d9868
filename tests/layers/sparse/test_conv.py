"""Convolution at active positions."""

from __future__ import annotations

from pathlib import Path

from d2_ext.layers.sparse.conv import active_rows, convolve_to_few, dense_masked_conv, gather_conv
from d2_ext.layers.sparse.rows import RowLayout, RowValues

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.golden import load


def gathered(x: Tensor, conv: nn.Conv2d, mask: Tensor, base: float = 0.0) -> RowValues:
    layout = RowLayout.of([x])
    index = active_rows([mask])
    table = F.pad(layout.flatten([x]), (0, 0, 0, 1))
    return RowValues(gather_conv(table, layout.neighbors(index), conv.weight, conv.bias), index, base, layout)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0], ids=["empty", "some", "full"])
def test_gathering_gives_what_the_dense_convolution_gives(share: float) -> None:
    x = torch.randn(2, 5, 6, 7)
    conv = nn.Conv2d(5, 3, 3, padding=1)
    mask = (torch.rand(2, 1, 6, 7) < share).float()
    expected = dense_masked_conv(x, conv, mask, base=-8.0)
    torch.testing.assert_close(gathered(x, conv, mask, -8.0).maps()[0], expected, rtol=1e-5, atol=1e-5)


def test_inactive_positions_hold_the_base_and_the_mask_gets_a_gradient() -> None:
    x = torch.ones(1, 1, 1, 3)
    conv = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.ones_(conv.weight)
    nn.init.zeros_(conv.bias)
    mask = torch.tensor([1.0, 0.0, 1.0]).view(1, 1, 1, 3).requires_grad_()
    out = dense_masked_conv(x, conv, mask, base=-8.0)
    # neighbors in the single row: 2, 3, 2
    assert out.flatten().tolist() == [2.0, -8.0, 2.0]
    out.sum().backward()
    assert mask.grad.flatten().tolist() == [10.0, 11.0, 10.0]  # conv - base


def test_the_operation_agrees_with_the_reference_extension(golden: Path) -> None:
    case = load(golden, "ceasc_op")
    conv = nn.Conv2d(16, 24, 3, padding=1)
    conv.load_state_dict({"weight": case["weight"], "bias": case["bias"]})
    x, mask = case["input"], case["hard"]
    torch.testing.assert_close(conv(x), case["dense"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gathered(x, conv, mask, -8.0).maps()[0], case["out_base_m8"], rtol=1e-5, atol=1e-5)
    nn.init.zeros_(conv.bias)
    torch.testing.assert_close(gathered(x, conv, mask).maps()[0], case["out_nobias_base0"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradient", [True, False])
def test_convolutions_to_few_channels_equal_each_of_them(
    dtype: torch.dtype, layout: torch.memory_format, gradient: bool
) -> None:
    x = torch.randn(2, 6, 5, 4).to(dtype).contiguous(memory_format=layout)
    convs = [nn.Conv2d(6, 1, 3, padding=1).to(dtype) for _ in range(3)]
    with torch.set_grad_enabled(gradient):
        found = convolve_to_few(x, convs)
    expected = torch.cat([conv(x) for conv in convs], dim=1)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=tolerance, atol=tolerance)
