"""Towers of dense heads: names, norms per level, the deformable last layer."""

from __future__ import annotations

from d2_ext.layers.deform import ModulatedDeformConv
from d2_ext.layers.tower import ConvTower, init_head_convs

import pytest
import torch
from torch import nn


def test_names_count_convolution_norm_and_activation() -> None:
    tower = ConvTower(32, 2, num_levels=3, norm="GN", deform_last=True)
    assert {key.rsplit(".", 1)[0] for key in tower.state_dict()} == {"0", "1", "3.offset", "3.conv", "4"}


def test_norms_with_statistics_exist_once_per_level() -> None:
    tower = ConvTower(8, 1, num_levels=2, norm="BN")
    high, low = torch.randn(4, 8, 5, 5) + 9, torch.randn(4, 8, 3, 3) - 9
    for _ in range(60):  # in any order of levels
        tower(low, 1)
        tower(high, 0)
    means = [norm.running_mean.mean() for norm in tower[1]]
    convolved = [tower[0](x).mean() for x in (high, low)]
    torch.testing.assert_close(torch.stack(means), torch.stack(convolved), rtol=0.02, atol=0.02)


def test_a_tower_without_layers_is_the_identity() -> None:
    x = torch.randn(1, 8, 3, 3)
    assert ConvTower(8, 0, num_levels=1)(x, 0) is x


def test_without_offsets_and_with_full_weights_a_deformable_convolution_is_a_plain_one() -> None:
    deform = ModulatedDeformConv(8)
    nn.init.zeros_(deform.offset.weight)
    with torch.no_grad():
        deform.offset.bias[:18], deform.offset.bias[18:] = 0.0, 50.0
    x = torch.randn(2, 8, 6, 7)
    plain = nn.functional.conv2d(x, deform.conv.weight, deform.conv.bias, padding=1)
    torch.testing.assert_close(deform(x), plain)


def test_a_bias_of_the_offsets_moves_the_samples_first_down_then_right() -> None:
    deform = ModulatedDeformConv(1)
    nn.init.zeros_(deform.offset.weight)
    nn.init.zeros_(deform.conv.weight)
    with torch.no_grad():
        deform.conv.weight[0, 0, 1, 1] = 1.0
        deform.offset.bias[:] = 50.0
        deform.offset.bias[:18:2], deform.offset.bias[1:18:2] = 1.0, 0.0  # one row down
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(deform(x)[0, 0, :2], x[0, 0, 1:])


def test_the_head_initialization_reaches_offsets_but_not_the_deformable_kernel() -> None:
    tower = ConvTower(64, 1, num_levels=1, deform_last=True)
    before = tower[0].conv.weight.clone()
    init_head_convs(tower)
    assert torch.equal(tower[0].conv.weight, before)
    assert before.abs().max().item() == pytest.approx((9 * 64) ** -0.5, rel=0.01)
    assert tower[0].offset.weight.std().item() == pytest.approx(0.01, rel=0.05)
