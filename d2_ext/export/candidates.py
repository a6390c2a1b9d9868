"""Choice of detections in tensors of fixed layout, so that a graph can hold it: top-k, threshold, maximum.

It executes a ``SelectionRule`` like eager inference (``modeling/selection.py`` and Detectron2's RetinaNet); where
scores are exactly equal, the choice among them may differ.

Letters: N images, R boxes of a level, K classes, P candidates, D detections of an image, V numbers of a raw box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from d2_ext.modeling.selection import SelectionRule

import torch
from torch import Tensor


@dataclass(frozen=True)
class LevelOutput:
    """Predictions of one pyramid level.

    Attributes:
        logits: (N, R, K).
        quality: (N, R, 1) logits that multiply as a probability, or None.
        raw_boxes: (N, R, V), what ``decode`` turns into boxes.
        references: (R, 2) points or (R, 4) anchors, px.
        decode: from references (m, .) and raw boxes (m, V) to boxes (m, 4) XYXY px.
    """

    logits: Tensor
    quality: Tensor | None
    raw_boxes: Tensor
    references: Tensor
    decode: Callable[[Tensor, Tensor], Tensor]


def level_candidates(level: LevelOutput, rule: SelectionRule) -> tuple[Tensor, Tensor]:
    """Choose the candidates of one level.

    Returns:
        Boxes (N, P, 4) XYXY px and scores (N, P, K), 0 where a pair of box and class is no candidate.
    """
    # The best k pairs lie in the k boxes with the best classes: only these are looked at class by class.
    # Flat, since runtimes are slow where the last dimension has one element.
    quality = None if level.quality is None else level.quality.squeeze(2)
    best, keep, _ = _ranking(level.logits.amax(dim=2), quality, rule)
    order = torch.where(keep, best, -1.0)
    chosen = order.topk(torch.sym_min(rule.topk, order.shape[1])).indices  # (N, P)
    quality = None if level.quality is None else _take(level.quality, chosen)
    ranking, keep, product = _ranking(_take(level.logits, chosen), quality, rule)
    if rule.unit != "anchor":
        pairs = torch.where(keep, ranking, -1.0).flatten(1)
        limit = rule.topk if rule.unit == "pair" else torch.sym_min(rule.topk, order.shape[1])
        last = pairs.topk(torch.sym_min(limit, pairs.shape[1])).values[:, -1]
        keep = keep & (ranking >= last[:, None, None])
    scores = torch.where(keep, product.sqrt() if rule.root else product, 0.0)
    raw = _take(level.raw_boxes, chosen).float()
    boxes = level.decode(level.references[chosen].flatten(0, 1), raw.flatten(0, 1))
    return boxes.unflatten(0, (scores.shape[0], -1)), scores


def _ranking(logits: Tensor, quality: Tensor | None, rule: SelectionRule) -> tuple[Tensor, Tensor, Tensor]:
    """Ranking, whether above the threshold, and p * f, for logits and quality of shapes that broadcast."""
    prob = logits.float().sigmoid()
    product = prob if quality is None else prob * quality.float().sigmoid()
    keep = (product if rule.thresh_with_quality else prob) > rule.score_thresh
    return product if rule.rank_with_quality else prob, keep, product


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (N, P) of each image's table in ``values`` (N, R, C): (N, P, C)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def best_detections(boxes: Tensor, scores: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best pairs of every image.

    Args:
        boxes: (N, P, 4).
        scores: (N, P, K), 0 where there is nothing.
        limit: the most of an image.

    Returns:
        Boxes (N, D, 4), scores (N, D), best first and 0 where there are fewer, and classes (N, D).
    """
    flat = scores.flatten(1)
    values, index = flat.topk(torch.sym_min(limit, flat.shape[1]))
    num_classes = scores.shape[2]
    return _take(boxes, index // num_classes), values, index % num_classes


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (..., 4) XYXY within 0..width and 0..height px."""
    x = boxes[..., 0::2].clamp(min=0).clamp(max=width)
    y = boxes[..., 1::2].clamp(min=0).clamp(max=height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)
