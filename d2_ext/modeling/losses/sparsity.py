"""Losses on the share of active positions (adaptive multi-layer masking, AMM, of CEASC; arXiv:2303.14488).

Checked against: the authors' released code at commit 2abfd1a, which adds the same term once per layer and averages;
that is the mean over branches and levels computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RATIO_TARGETS = ("anchors", "positions")


def active_ratios(masks: Sequence[Tensor]) -> Tensor:
    """Share of active positions of each of L masks (N, 1, H, W), over the batch: (L,), differentiable."""
    return torch.stack([m.float().mean() for m in masks])


def positive_ratios(positive: Sequence[Tensor], unit: str = "anchors") -> Tensor:
    """Target P of each level's active share.

    Args:
        positive: L tensors, bool (N, H*W, A): which anchors are labeled positive.
        unit: ``"anchors"``, positive anchors over all anchors (the released code); or ``"positions"``, positions that
            own a positive anchor over all positions (the paper).

    Returns:
        (L,) float32 in [0, 1], over the batch. Ignored and padded anchors count in the denominator.
    """
    return torch.stack([(p if unit == "anchors" else p.any(dim=-1)).float().mean() for p in positive])


def ratio_loss(ratios: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of the active shares from their targets.

    Args:
        ratios: (branches, L), share of active positions.
        targets: (L,), the same for all branches.
    """
    return (ratios - targets.detach()).square().mean()
