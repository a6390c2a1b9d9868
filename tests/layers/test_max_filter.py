"""3D max filtering: a loop over the definition, and the reference's outputs."""

from __future__ import annotations

from pathlib import Path

from d2_ext.errors import ConfigError
from d2_ext.layers.max_filter import MaxFilter3d

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.golden import load


@pytest.mark.parametrize("tau", [0, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_outputs_equal_the_reference(golden: Path, tau: int, kernel: int) -> None:
    case = load(golden, "defcn_max3d")
    module = MaxFilter3d(32, kernel_size=kernel, tau=tau)
    module.load_state_dict(case["state_dict"])
    for ours, theirs in zip(module(case["inputs"]), case[f"out_tau{tau}_k{kernel}"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_odd_sizes_equal_the_reference(golden: Path) -> None:
    case = load(golden, "defcn_max3d")
    module = MaxFilter3d(32)
    module.load_state_dict(case["state_dict"])
    for ours, theirs in zip(module(case["odd_inputs"]), case["odd_out_tau2_k3"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_it_is_a_3d_pooling_over_the_stacked_neighbors() -> None:
    module = MaxFilter3d(4, norm="")
    module.conv = nn.Identity()
    maps = [torch.randn(2, 4, 7, 9), torch.randn(2, 4, 4, 5), torch.randn(2, 4, 2, 3)]
    outputs = module(maps)
    for level, feature in enumerate(maps):
        near = range(max(level - 1, 0), min(level + 2, 3))
        stack = torch.stack(
            [maps[k] if k == level else F.interpolate(maps[k], feature.shape[-2:], mode="bilinear") for k in near],
            dim=2,
        )
        pooled = F.max_pool3d(stack, (3, 3, 3), stride=1, padding=1)[:, :, near.index(level)]
        torch.testing.assert_close(outputs[level], F.relu(feature + pooled))


def test_negative_maps_are_not_lifted_to_zero_at_the_borders() -> None:
    module = MaxFilter3d(2, norm="")
    module.conv = nn.Identity()
    feature = torch.full((1, 2, 3, 3), -4.0)
    pooled = module._pool_neighbors([feature, feature[..., :2, :2]], 0)
    assert (pooled == -4).all()


def test_neighborhoods_without_centre_are_refused() -> None:
    with pytest.raises(ConfigError, match="TAU 3 even"):
        MaxFilter3d(32, tau=3)
    with pytest.raises(ConfigError, match="KERNEL_SIZE 2 must be odd"):
        MaxFilter3d(32, kernel_size=2)
