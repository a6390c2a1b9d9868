"""Group normalization with given statistics."""

from __future__ import annotations

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.context_norm import ChannelMoments, ContextGroupNorm, group_statistics, merge_moments

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
def test_statistics_of_parts_merge_into_those_of_the_whole(unbiased: bool) -> None:
    context = torch.randn(30, 12) * 0.1 + 100 + torch.arange(12)  # the mean is 1000 deviations away
    parts = [ChannelMoments.consume(x.clone()) for x in context.split([1, 20, 9])]
    merged = merge_moments(parts, 4, eps=1e-5, unbiased=unbiased)
    whole = group_statistics(context.double()[None], 4, eps=1e-5, unbiased=unbiased)
    torch.testing.assert_close(merged.mean, whole.mean.float(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(merged.rstd, whole.rstd.float(), rtol=1e-5, atol=0.0)


def test_a_part_of_a_single_element_has_no_variance() -> None:
    merged = merge_moments([ChannelMoments.consume(torch.tensor([[3.0, 5.0]]))], 2, eps=0.25, unbiased=True)
    assert merged.mean.tolist() == [[3.0, 5.0]]
    assert merged.rstd.tolist() == [[2.0, 2.0]]  # 1 / sqrt(0.25)
