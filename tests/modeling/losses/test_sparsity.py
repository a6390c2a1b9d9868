"""Mask ratio loss."""

from __future__ import annotations

import math

from d2_ext.modeling.losses.sparsity import active_ratios, mask_loss, positive_ratios, ratio_loss

import pytest
import torch


def test_loss_by_hand() -> None:
    ratios = torch.tensor([[0.5, 0.1], [0.3, 0.0]], requires_grad=True)  # branches x levels
    # ((0.5 - 0.2)^2 + 0 + (0.3 - 0.2)^2 + (0.0 - 0.1)^2) / 4 = (0.09 + 0.01 + 0.01) / 4
    loss = ratio_loss(ratios, torch.tensor([0.2, 0.1]))
    assert loss.item() == pytest.approx(0.0275)
    loss.backward()
    torch.testing.assert_close(ratios.grad, torch.tensor([[0.15, 0.0], [0.05, -0.05]]))


def test_active_share_is_that_of_the_batch() -> None:
    masks = [torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1]).view(2, 1, 2, 2), torch.zeros(2, 1, 1, 1)]
    assert active_ratios(masks).tolist() == [5 / 8, 0.0]


def test_targets_count_anchors_or_positions() -> None:
    positive = torch.zeros(1, 4, 3, dtype=torch.bool)  # 4 positions of 3 anchors
    positive[0, 0, :2] = True
    positive[0, 3, 1] = True
    assert positive_ratios([positive], "anchors").tolist() == [3 / 12]
    assert positive_ratios([positive], "positions").tolist() == [2 / 4]


def test_the_mask_loss_is_the_cross_entropy_of_wanted_and_of_other_positions() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0, 4.0])
    wanted = torch.tensor([True, True, False, False, False])
    counted = torch.tensor([True, True, True, True, False])  # the last one lies in an ignore region
    missed = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    needless = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-3))) / 2
    assert mask_loss(logits, wanted, counted, 3.0).item() == pytest.approx(3 * missed + needless, rel=1e-6)


@pytest.mark.parametrize("value", [True, False])
def test_the_mask_loss_takes_images_without_and_full_of_objects(value: bool) -> None:
    logits = torch.zeros(4, requires_grad=True)
    wanted = torch.full((4,), value)
    loss = mask_loss(logits, wanted, torch.ones(4, dtype=torch.bool), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx((2 if value else 1) * math.log(2))
    assert logits.grad.isfinite().all()


def test_the_share_of_objects_does_not_weigh_in_the_mask_loss() -> None:
    few, many = (torch.arange(1000) < count for count in (2, 500))
    every = torch.ones(1000, dtype=torch.bool)
    pulls = []
    for wanted in (few, many):
        logits = torch.zeros(1000, requires_grad=True)
        mask_loss(logits, wanted, every, 1.0).backward()
        pulls.append(logits.grad[wanted].sum().item())
    assert pulls[0] == pytest.approx(pulls[1], rel=1e-5)
