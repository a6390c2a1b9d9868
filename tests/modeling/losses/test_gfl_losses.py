"""Losses of GFL by hand."""

from __future__ import annotations

import math

from d2_ext.modeling.losses.gfl import distribution_focal_loss, expected_distances, quality_focal_loss

import pytest
import torch
import torch.nn.functional as F


def test_expected_distance_is_the_mean_of_the_bins() -> None:
    logits = torch.full((2, 4, 17), -1e4)
    logits[0, :, 3], logits[1, :, 5], logits[1, :, 6] = 0, math.log(3.0), 0.0
    assert torch.allclose(expected_distances(logits), torch.tensor([[3.0] * 4, [5.25] * 4]))


def test_quality_focal_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 1.0], [3.0, 3.0]])
    labels = torch.tensor([1, 2, -1])  # second class, background, ignored
    quality = torch.tensor([0.6, 0.9, 0.9])  # of background and ignored rows it must not be read
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    p = sigmoid(2.0)
    positive = (0.6 - p) ** 2 * -(0.6 * math.log(p) + 0.4 * math.log(1 - p))
    negative = sum(sigmoid(x) ** 2 * -math.log(1 - sigmoid(x)) for x in (0.0, -1.0, 1.0))
    assert quality_focal_loss(logits, labels, quality).item() == pytest.approx(positive + negative, rel=1e-6)
    weighted = quality_focal_loss(logits, labels, quality, class_weights=torch.tensor([7.0, 3.0]))
    assert weighted.item() == pytest.approx(3 * positive + negative, rel=1e-6)


def test_quality_focal_loss_is_smallest_at_the_quality() -> None:
    logit = torch.tensor([[math.log(0.7 / 0.3)]], requires_grad=True)
    loss = quality_focal_loss(logit, torch.tensor([0]), torch.tensor([0.7]))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert logit.grad.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("logit", [-80.0, 80.0])
def test_extreme_logits_give_finite_losses_and_gradients(logit: float) -> None:
    logits = torch.full((2, 3), logit, requires_grad=True)
    quality_focal_loss(logits, torch.tensor([0, 3]), torch.tensor([0.5, 0.0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_distribution_focal_loss_weighs_the_two_bins_by_nearness() -> None:
    logits = torch.randn(1, 4, 17)
    distances = torch.tensor([[2.25, 0.0, -3.0, 40.0]])  # the last two are clamped to 0 and 15.9
    log_prob = F.log_softmax(logits[0], dim=-1)
    expected = [
        -(0.75 * log_prob[0, 2] + 0.25 * log_prob[0, 3]),
        -log_prob[1, 0],
        -log_prob[2, 0],
        -(0.1 * log_prob[3, 15] + 0.9 * log_prob[3, 16]),
    ]
    assert distribution_focal_loss(logits, distances).item() == pytest.approx(sum(expected).item() / 4, rel=1e-5)


def test_no_positives_give_zero_with_a_graph() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    sides = torch.randn(2, 4, 17, requires_grad=True)
    ignored = torch.full((5,), -1)
    loss = (
        quality_focal_loss(logits, ignored, torch.zeros(5)) + distribution_focal_loss(sides[:0], sides[:0, :, 0]).sum()
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert torch.equal(sides.grad, torch.zeros_like(sides))
