"""Choice of the boxes that go into non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

PRE_NMS_UNITS = ("anchor", "pair")


def select_candidates(scores: Tensor, score_thresh: float, topk: int, unit: str) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the candidates of one level.

    Args:
        scores: (B, K) in [0, 1], of B boxes and K classes.
        score_thresh: scores must be larger.
        topk: the most candidates; what is counted is the ``unit``.
        unit: ``"anchor"`` keeps the boxes with the largest best score, then all their classes above the threshold;
            ``"pair"`` keeps the (box, class) pairs with the largest scores above it.

    Returns:
        Box numbers, classes (both int64) and scores of the chosen pairs, each (m,).
    """
    if unit == "anchor" and len(scores) > topk:
        kept = scores.amax(dim=1).topk(topk).indices
    else:
        kept = torch.arange(len(scores), device=scores.device)
    box, classes = (scores[kept] > score_thresh).nonzero().unbind(1)
    box = kept[box]
    chosen = scores[box, classes]
    if unit == "pair" and len(chosen) > topk:
        chosen, order = chosen.topk(topk)
        box, classes = box[order], classes[order]
    return box, classes, chosen
