"""How a detector chooses its detections: one rule, and its execution on the positions of one level.

The rule is executed here in eager inference, and by ``export/candidates.py`` in graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from d2_ext.errors import check_choice

from torch import Tensor

PRE_NMS_UNITS = ("anchor", "pair")  # those that a config can choose
UNITS = (*PRE_NMS_UNITS, "location")


@dataclass(frozen=True)
class SelectionRule:
    """How a detector chooses its detections; p is the class probability, f that of the quality (1 without one).

    Attributes:
        score_thresh: smaller or equal values are dropped, in [0, 1).
        topk: the most candidates of a level and image.
        unit: what ``topk`` counts: ``"pair"`` of box and class; ``"anchor"``, the boxes with the best classes, each
            with all its classes; or ``"location"``: pairs, but not more than the level has boxes.
        thresh_with_quality, rank_with_quality: whether threshold and ranking look at p * f instead of p.
        root: whether the score is sqrt(p * f) instead of p * f.
        clip_first: whether boxes are clipped to the image before NMS.
        nms_thresh: IoU of class-wise NMS; None means no NMS.
        max_detections: of an image.
        inclusive_pixels: whether boxes get the last pixel that they hold at the end.

    Raises:
        ConfigError: an unknown unit.
    """

    score_thresh: float
    topk: int
    nms_thresh: float | None
    max_detections: int
    unit: str = "pair"
    thresh_with_quality: bool = False
    rank_with_quality: bool = False
    root: bool = False
    clip_first: bool = False
    inclusive_pixels: bool = False

    def __post_init__(self) -> None:
        check_choice("The unit of the candidates before NMS", self.unit, UNITS)


def select_candidates(
    logits: Tensor, quality: Tensor | None, rule: SelectionRule, num_boxes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best (box, class) pairs of one level of one image.

    Args:
        logits: (m, K) of the m boxes that are looked at.
        quality: (m, 1) logits, or None.
        rule: how to choose.
        num_boxes: of the level, also those that are not looked at.

    Returns:
        Box numbers below m, classes (both int64) and scores of the chosen pairs, each (P,), best first if there are
        more than ``topk`` pairs.
    """
    # 1. By anchor: the boxes with the best classes, before any threshold.
    kept = None
    if rule.unit == "anchor" and len(logits) > rule.topk:
        kept = logits.float().amax(dim=1).sigmoid().topk(rule.topk).indices
        logits, quality = logits[kept], None if quality is None else quality[kept]
    # 2. The threshold. Logits below that of the threshold are dropped before any sigmoid; the margin leaves rounding
    #    to the exact test.
    thresh = rule.score_thresh
    lowest = math.log(thresh / (1 - thresh)) - 0.01 if 0 < thresh < 1 else math.copysign(math.inf, thresh - 0.5)
    box, classes = (logits > lowest).nonzero().unbind(1)
    prob = logits[box, classes].float().sigmoid()
    product = prob if quality is None else prob * quality[box, 0].float().sigmoid()
    keep = ((product if rule.thresh_with_quality else prob) > thresh).nonzero()[:, 0]
    # 3. By pair: the best ones above the threshold.
    topk = min(rule.topk, num_boxes) if rule.unit == "location" else rule.topk
    if rule.unit != "anchor" and len(keep) > topk:
        keep = keep[(product if rule.rank_with_quality else prob)[keep].topk(topk).indices]
    box, scores = box[keep], product[keep]
    return box if kept is None else kept[box], classes[keep], scores.sqrt() if rule.root else scores
