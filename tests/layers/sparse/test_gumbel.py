"""Learnable binary masks."""

from __future__ import annotations

from d2_ext.layers.sparse.gumbel import draw_uniform_pair, gumbel_noise, hard_mask, sample_mask

import pytest
import torch


def test_noise_is_minus_log_of_minus_log() -> None:
    # -ln(-ln 0.5) = 0.36651; u = 0 is held finite: -ln(-ln 1e-8) = -2.91338
    noise = gumbel_noise(torch.tensor([0.5, 0.0, 1 - 2**-24]))
    assert noise[0].item() == pytest.approx(0.36651, abs=1e-5)
    assert noise[1].item() == pytest.approx(-2.91338, abs=1e-4)
    assert torch.isfinite(noise).all()


def test_a_sampled_mask_is_exactly_binary_with_the_gradient_of_the_relaxed_one() -> None:
    logits = torch.randn(2, 1, 5, 7, requires_grad=True)
    uniform = draw_uniform_pair(logits)
    mask = sample_mask(logits, uniform, temperature=0.7)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    mask.sum().backward()
    noisy = logits.detach() + gumbel_noise(uniform[0]) - gumbel_noise(uniform[1])
    assert torch.equal(mask.detach(), (noisy >= 0).float())
    soft = torch.sigmoid(noisy / 0.7)
    torch.testing.assert_close(logits.grad, soft * (1 - soft) / 0.7)


def test_the_first_uniform_makes_a_position_active_and_the_second_inactive() -> None:
    low, high = torch.tensor([0.1]), torch.tensor([0.9])
    assert sample_mask(torch.zeros(1), (high, low)).item() == 1
    assert sample_mask(torch.zeros(1), (low, high)).item() == 0


def test_activity_follows_the_logistic_function_of_the_logit() -> None:
    logits = torch.full((200_000,), -2.0)
    mask = sample_mask(logits, draw_uniform_pair(logits))
    assert mask.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(-2.0)).item(), abs=3e-3)  # 0.1192


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = torch.randn(50).bfloat16()
    assert sample_mask(logits, draw_uniform_pair(logits)).dtype == torch.float32


def test_at_inference_a_logit_of_zero_is_active() -> None:
    assert hard_mask(torch.tensor([-1e-6, 0.0, 3.0])).tolist() == [0.0, 1.0, 1.0]
