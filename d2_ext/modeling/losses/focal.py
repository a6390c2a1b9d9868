"""Focal losses on integer labels, for logits and for products of two probabilities.

Paper: Focal Loss for Dense Object Detection, arXiv:1708.02002, Eq. 5.
All run in float32, also under autocast, and need no one-hot targets.

Labels: 0..K-1 foreground class, K background, -1 ignored.
"""

from __future__ import annotations

from d2_ext.errors import ConfigError, did_you_mean

import torch
from torch import Tensor
from torch.nn import functional as F

PRODUCT_FOCAL_FORMS = ("log", "probability")


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Binary focal loss of every class at every location.

    Args:
        logits: (R, K).
        labels: (R,) see the module.
        alpha: weight of the labeled class; 1 - alpha weighs the others. Below 0 all weigh 1.
        gamma: exponent that plays down what is already right.
        class_weights: (K,) factors of the term of the labeled class; None for 1.
        reduction: ``"sum"``, or ``"rows"`` for the sum over the classes of each location.

    Returns:
        A scalar, or (R,).

    Example:
        >>> sigmoid_focal_loss(torch.zeros(1, 1), torch.tensor([0]))  # 0.25 * 0.5**2 * ln 2
        tensor(0.0433)
    """
    logits = logits.float()
    labeled, others = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)

    def of_others(x: Tensor) -> Tensor:  # -p^gamma ln(1 - p)
        return others * x.sigmoid() ** gamma * F.softplus(x)

    rows = of_others(logits).sum(dim=1) * (labels >= 0)
    positive = ((labels >= 0) & (labels < logits.shape[1])).nonzero()[:, 0]
    chosen = logits[positive, labels[positive]]
    log_prob = F.logsigmoid(chosen)
    own = -labeled * (-chosen).sigmoid() ** gamma * log_prob
    if class_weights is not None:
        own = own * class_weights[labels[positive]]
    swap = own - of_others(chosen)
    if reduction == "rows":
        return rows.index_add(0, positive, swap)
    return rows.sum() + swap.sum()


def product_focal_loss(
    logits: Tensor,
    filter_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    form: str = "log",
) -> Tensor:
    """Focal loss of p = sigmoid(logits) * sigmoid(filter_logits), summed.

    Args:
        logits: (R, K).
        filter_logits: (R, 1).
        labels: (R,) see the module.
        alpha: see :func:`sigmoid_focal_loss`.
        gamma: see :func:`sigmoid_focal_loss`.
        class_weights: see :func:`sigmoid_focal_loss`.
        form: ``"log"`` works with ln p and ln(1 - p), whose gradients survive any logit. ``"probability"`` works
            with p, as the original does: equal to rounding for moderate logits, but the logarithms are cut at -100
            and a positive with p below 1e-12 has practically no gradient.

    Raises:
        ConfigError: ``form`` is neither.
    """
    if form not in PRODUCT_FOCAL_FORMS:
        raise ConfigError(f"FILTER_FOCAL: no form {form!r}. {did_you_mean(form, PRODUCT_FOCAL_FORMS)}")
    # The binary cross entropy of probabilities refuses to run under autocast, and half precision would be too
    # coarse for either form.
    with torch.autocast(device_type=logits.device.type, enabled=False):
        logits, filter_logits = logits.float(), filter_logits.float()
        targets = torch.zeros_like(logits)
        positive = ((labels >= 0) & (labels < logits.shape[1])).nonzero()[:, 0]
        targets[positive, labels[positive]] = 1.0
        if form == "log":
            loss = _product_focal_log(logits, filter_logits, targets, alpha, gamma)
        else:
            loss = _product_focal_probability(logits, filter_logits, targets, alpha, gamma)
        if class_weights is not None:
            loss = torch.where(targets > 0, loss * class_weights, loss)
        return (loss.sum(dim=1) * (labels >= 0)).sum()


def _product_focal_log(logits: Tensor, filter_logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    log_prob = F.logsigmoid(logits) + F.logsigmoid(filter_logits)
    # 1 - ab = (1 - a) + a (1 - b): a sum of positive terms, without cancellation.
    log_rest = torch.logaddexp(F.logsigmoid(-logits), F.logsigmoid(logits) + F.logsigmoid(-filter_logits))
    positive = -alpha * (gamma * log_rest).exp() * log_prob
    negative = -(1 - alpha) * (gamma * log_prob).exp() * log_rest
    return torch.where(targets > 0, positive, negative)


def _product_focal_probability(
    logits: Tensor, filter_logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    prob = logits.sigmoid() * filter_logits.sigmoid()
    entropy = F.binary_cross_entropy(prob, targets, reduction="none")
    missing = torch.where(targets > 0, 1 - prob, prob)
    weight = torch.where(targets > 0, alpha, 1 - alpha)
    return weight * missing**gamma * entropy
