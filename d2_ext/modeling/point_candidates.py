"""Choice of detections among the locations of one pyramid level."""

from __future__ import annotations

import math

from torch import Tensor


def select_points(
    logits: Tensor,
    factor_logits: Tensor | None,
    *,
    score_thresh: float,
    topk: int,
    thresh_with_factor: bool,
    rank_with_factor: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best (location, class) pairs of one level of one image.

    With p = sigmoid(logits) and f = sigmoid(factor_logits), the product p * f is what is returned.

    Args:
        logits: (R, K).
        factor_logits: (R, 1), multiplied as a probability; None stands for 1.
        score_thresh: in [0, 1); smaller or equal values are dropped.
        topk: the most pairs that are kept.
        thresh_with_factor: whether the threshold is on p * f instead of p.
        rank_with_factor: whether the ranking is by p * f instead of p.

    Returns:
        Locations and classes (int64) and products of the chosen pairs, each (m,), best first if there are more
        than ``topk``.
    """
    # Logits below the threshold's own can be dropped before any sigmoid; the margin leaves rounding to the exact test.
    lowest = math.log(score_thresh / (1 - score_thresh)) - 0.01 if score_thresh > 0 else -math.inf
    location, classes = (logits > lowest).nonzero().unbind(1)
    prob = logits[location, classes].float().sigmoid()
    product = prob if factor_logits is None else prob * factor_logits[location, 0].float().sigmoid()

    keep = ((product if thresh_with_factor else prob) > score_thresh).nonzero()[:, 0]
    ranking = (product if rank_with_factor else prob)[keep]
    if len(keep) > topk:
        keep = keep[ranking.topk(topk).indices]
    return location[keep], classes[keep], product[keep]
