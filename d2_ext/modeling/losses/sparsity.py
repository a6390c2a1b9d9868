"""Losses on the masks of sparse towers: on their share of active positions, and on where they are active.

The share is the adaptive multi-layer masking (AMM) of CEASC (arXiv:2303.14488), checked against the authors' released
code at commit 2abfd1a, which adds the same term once per layer and averages; that is the mean over branches and levels
computed here. The loss on where masks are active (``mask_loss``) is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


def mask_loss(logits: Tensor, wanted: Tensor, counted: Tensor, positive_weight: float) -> Tensor:
    """Binary cross entropy of mask logits, balanced: the mean over wanted positions and the mean over all others.

    The share of objects in an image does not matter, however few and tiny they are. At its optimum a position is active
    where its features are more than 1 / ``positive_weight`` times as frequent among the wanted as among the others.

    Args:
        logits: of one branch at n positions (n,), of all levels and images.
        wanted: bool (n,), where the head should compute.
        counted: bool (n,), which of the others count; those in ignore regions do not.
        positive_weight: of the mean over wanted positions; a larger one keeps more objects and more background.
    """
    others = counted & ~wanted
    missed = F.softplus(-logits)[wanted].sum() / wanted.sum().clamp(min=1)
    needless = F.softplus(logits)[others].sum() / others.sum().clamp(min=1)
    return positive_weight * missed + needless
