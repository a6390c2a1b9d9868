"""Mask ratio loss."""

from __future__ import annotations

from d2_ext.modeling.losses.sparsity import active_ratios, positive_ratios, ratio_loss

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
