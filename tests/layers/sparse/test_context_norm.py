"""Group normalization with given statistics."""

from __future__ import annotations

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse import context_norm
from d2_ext.layers.sparse.context_norm import ContextGroupNorm, FeatureMoments, group_statistics

import pytest
import torch
import torch.nn.functional as F


def rows(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def test_statistics_of_a_small_group_by_hand() -> None:
    # one image, one group of 2 channels, 2 positions: 1 2 3 6, mean 3, squared distances 4 + 1 + 0 + 9 = 14
    context = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    unbiased = group_statistics(context, 1, eps=0.0, unbiased=True)
    assert unbiased.mean.item() == 3
    assert unbiased.rstd.item() == pytest.approx((14 / 3) ** -0.5)
    assert group_statistics(context, 1, eps=0.0, unbiased=False).rstd.item() == pytest.approx((14 / 4) ** -0.5)


def test_with_its_own_biased_statistics_it_is_ordinary_group_normalization() -> None:
    norm = ContextGroupNorm(num_channels=12, num_groups=4, unbiased=False)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 12, 5, 4) * 3 + 1
    expected = F.group_norm(x, 4, norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(norm(x, norm.statistics(rows(x))), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.ordinary(x), expected)


def test_statistics_come_from_the_context_of_the_same_image() -> None:
    norm = ContextGroupNorm(num_channels=4, num_groups=2)
    x, context = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    both = norm(x, norm.statistics(rows(context)))
    alone = norm(x[1:], norm.statistics(rows(context[1:])))
    torch.testing.assert_close(both[1:], alone)
    z = (x[0, 2:] - context[0, 2:].mean()) / (context[0, 2:].var(unbiased=True) + 1e-5).sqrt()
    torch.testing.assert_close(both[0, 2:], z)


def test_a_group_of_one_element_has_variance_zero_instead_of_nan() -> None:
    statistics = group_statistics(torch.tensor([[[2.0, 5.0]]]), 2, eps=1e-5, unbiased=True)
    assert statistics.mean.tolist() == [[2.0, 5.0]]
    torch.testing.assert_close(statistics.rstd, torch.full((1, 2), 1e-5**-0.5))


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="48 channels cannot be split into 32 groups"):
        ContextGroupNorm(num_channels=48, num_groups=32)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("positions", [47, 7, 6, 5])
def test_statistics_of_a_point_wise_convolution_follow_from_the_moments_of_its_input(
    monkeypatch: pytest.MonkeyPatch, unbiased: bool, positions: int
) -> None:
    monkeypatch.setattr(context_norm, "MOMENT_ROWS", 20)  # 47 are pieces of 20, 20 and 7 positions
    features = torch.randn(2, positions, 6) * 0.1 + 100 + torch.arange(6)  # the mean is 1000 deviations away
    features[1, 20:] += 3  # and pieces differ
    weight, bias = torch.randn(12, 6), torch.randn(12)
    norm = ContextGroupNorm(num_channels=12, num_groups=4, unbiased=unbiased)
    found = norm.statistics_after(weight, bias, [FeatureMoments.of(rows) for rows in features])
    whole = norm.statistics(features.double() @ weight.double().T + bias)
    torch.testing.assert_close(found.mean, whole.mean.float(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found.rstd, whole.rstd.float(), rtol=1e-4, atol=0.0)


def test_a_single_position_and_channel_has_no_variance() -> None:
    norm = ContextGroupNorm(num_channels=2, num_groups=2, eps=0.25)
    found = norm.statistics_after(
        torch.eye(2), torch.tensor([1.0, 0.0]), [FeatureMoments.of(torch.tensor([[3.0, 5.0]]))]
    )
    assert found.mean.tolist() == [[4.0, 5.0]]
    assert found.rstd.tolist() == [[2.0, 2.0]]  # 1 / sqrt(0.25)
