"""Binary masks that can be learned: Gumbel noise and a straight-through gradient.

Paper: Adaptive Sparse Convolutional Networks with Global Context Enhancement for Faster Object Detection on Drone
Images (CEASC), arXiv:2303.14488; the estimator is that of Verelst and Tuytelaars (DynConv), arXiv:1912.03203.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-8  # keeps both logarithms finite for u = 0 and u -> 1


class Mask(NamedTuple):
    """Which positions of one map are computed.

    Attributes:
        active: (N, 1, H, W), 0 or 1, float32; in training it carries a gradient.
        logits: (N, 1, H, W) float32, what it was made from; None for a mask that was given.
    """

    active: Tensor
    logits: Tensor | None = None


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Turn samples of U[0, 1) into samples of the standard Gumbel distribution, -ln(-ln u)."""
    return -torch.log(-torch.log(uniform + EPS) + EPS)


def draw_uniform_pair(like: Tensor) -> tuple[Tensor, Tensor]:
    """Draw two independent float32 tensors of U[0, 1) with the shape of ``like``, the first one first."""
    first = torch.rand(like.shape, device=like.device)
    return first, torch.rand(like.shape, device=like.device)


def sample_mask(logits: Tensor, uniform: tuple[Tensor, Tensor], temperature: float = 1.0) -> Tensor:
    """Sample a binary mask whose gradient is that of the relaxed mask.

    A position is active if its logit plus logistic noise (the difference of two Gumbel samples) is not negative; the
    gradient is that of sigmoid((logit + noise) / temperature).

    Args:
        logits: any shape, the larger the more likely active.
        uniform: two tensors of U[0, 1), same shape; see ``draw_uniform_pair``.
        temperature: tau of the relaxation; it does not change which positions are active.

    Returns:
        Exactly 0 or 1 in float32, same shape.
    """
    noisy = logits.float() + gumbel_noise(uniform[0]) - gumbel_noise(uniform[1])
    soft = torch.sigmoid(noisy / temperature)
    hard = (soft >= 0.5).float()
    return hard + (soft - soft.detach())  # the bracket is 0, so the values stay exact


def hard_mask(logits: Tensor) -> Tensor:
    """Mask of inference: 1 where the logit is not negative, else 0; float32, without noise and gradient."""
    return (logits >= 0).float()
