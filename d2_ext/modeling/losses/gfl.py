"""Losses of Generalized Focal Loss: a class score that means localization quality, and box sides as distributions.

Paper: Generalized Focal Loss, arXiv:2006.04388. Checked against: mmdet 2.24, as the CEASC code uses it.
All run in float32, also under autocast, and keep the graph for empty input.

Letters: R locations, K classes, P positives, n bins of a side. Labels: 0..K-1 foreground, K background, -1 ignored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 0.1  # bins between the largest distance that can be a target and the last bin


def expected_distances(logits: Tensor) -> Tensor:
    """Expected value of distributions over the bins 0, 1, ... (Eq. 4): (..., n) to (...), in bins.

    Example:
        >>> expected_distances(torch.zeros(17))
        tensor(8.)
    """
    logits = logits.float()
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(dim=-1) * bins).sum(dim=-1)


def quality_focal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, *, beta: float = 2.0, class_weights: Tensor | None = None
) -> Tensor:
    """Quality focal loss (Eq. 6), summed over locations and classes.

    Args:
        logits: (R, K).
        labels: (R,) see the module.
        quality: (R,) in 0..1, target of the labeled class: the IoU of the predicted box; read at positives only.
        beta: exponent of the distance between score and target.
        class_weights: (K,) factors of the term of the labeled class; None for 1.

    Example:
        >>> quality_focal_loss(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([1.0]))  # 0.5**2 * ln 2
        tensor(0.1733)
    """
    logits, quality = logits.float(), quality.float()
    rows = _background_term(logits, beta).sum(dim=1) * (labels >= 0)
    positive = ((labels >= 0) & (labels < logits.shape[1])).nonzero()[:, 0]
    chosen, target = logits[positive, labels[positive]], quality[positive]
    entropy = F.softplus(chosen) - chosen * target  # binary cross entropy with a soft target
    own = (target - chosen.sigmoid()).abs().pow(beta) * entropy
    if class_weights is not None:
        own = own * class_weights[labels[positive]]
    swap = own - _background_term(chosen, beta)
    return rows.sum() + swap.sum()


def _background_term(logits: Tensor, beta: float) -> Tensor:
    """Loss of logits whose target is 0."""
    return logits.sigmoid().pow(beta) * F.softplus(logits)


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (Eq. 7): cross entropy with the two bins beside the true distance.

    Args:
        logits: (P, 4, n), of the distances to the four sides.
        distances: (P, 4) in bins; clamped to 0..n - 1.1.

    Returns:
        (P,), the mean over the four sides.
    """
    logits = logits.float()
    target = distances.float().clamp(min=0, max=logits.shape[-1] - 1 - BORDER)
    left = target.long()
    weight = target - left
    log_prob = logits.log_softmax(dim=-1)
    near, far = (log_prob.gather(-1, index[..., None])[..., 0] for index in (left, left + 1))
    return -((1 - weight) * near + weight * far).mean(dim=1)
