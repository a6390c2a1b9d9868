"""CrowdHuman's metric: AP at IoU 0.5, log-average miss rate (mMR) and recall, with Caltech's matching.

Papers: CrowdHuman, arXiv:1805.00123, section 4; Pedestrian Detection: An Evaluation of the State of the Art (Dollar
et al., TPAMI 2012), section 3.

Detections are matched best first. Each takes the free person of highest IoU above the threshold; one that finds none
but lies in an ignore region (intersection over its own area above the threshold) counts neither for nor against.

Letters: D detections and M persons of one image, V ignore regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOU_THRESHOLD = 0.5
# False positives per image at which the miss rate is read: nine points, equally spaced in the logarithm.
REFERENCE_FPPI = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)
SMALLEST_MISS_RATE = 1e-10  # keeps the logarithm finite where nothing is missed


@dataclass(frozen=True)
class CrowdImage:
    """One image; boxes are XYXY px of the file.

    Attributes:
        det_boxes: (D, 4).
        det_scores: (D,).
        gt_boxes: (M, 4) persons.
        regions: (V, 4) ignore regions.
    """

    det_boxes: np.ndarray
    det_scores: np.ndarray
    gt_boxes: np.ndarray
    regions: np.ndarray


def overlaps(boxes1: np.ndarray, boxes2: np.ndarray, *, over_first: bool = False) -> np.ndarray:
    """IoU of all pairs (D, 4), (M, 4) XYXY: (D, M); or intersection over the area of the first box."""
    low = np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    high = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    inter = (high - low).clip(min=0).prod(axis=2)
    area1, area2 = ((b[:, 2:] - b[:, :2]).clip(min=0).prod(axis=1) for b in (boxes1, boxes2))
    whole = np.broadcast_to(area1[:, None], inter.shape) if over_first else area1[:, None] + area2[None] - inter
    return np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0)


def match_image(image: CrowdImage, threshold: float = IOU_THRESHOLD) -> tuple[np.ndarray, np.ndarray]:
    """Match one image.

    Returns:
        Scores and hits (1 a person was found, 0 a false alarm) of the detections that count, best first.
    """
    order = np.argsort(-image.det_scores, kind="stable")
    iou = overlaps(image.det_boxes[order], image.gt_boxes)
    inside = overlaps(image.det_boxes[order], image.regions, over_first=True) > threshold
    in_region: np.ndarray = np.logical_or.reduce(inside, axis=1)
    is_free = np.ones(len(image.gt_boxes), dtype=bool)
    scores, hits = [], []
    for row, detection in enumerate(order):
        candidates = np.where(is_free, iou[row], 0.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        found = best >= 0 and candidates[best] > threshold
        if found:
            is_free[best] = False
        if found or not in_region[row]:
            scores.append(image.det_scores[detection])
            hits.append(int(found))
    return np.array(scores, dtype=np.float64), np.array(hits, dtype=np.int64)


def evaluate_crowdhuman(images: Sequence[CrowdImage], threshold: float = IOU_THRESHOLD) -> dict[str, float]:
    """Compute the metric over a data set.

    Args:
        images: all images, also those without detections.
        threshold: of the IoU.

    Returns:
        ``AP50``, ``mMR`` (lower is better) and ``recall``, in per cent; NaN if there are no persons at all.
    """
    num_persons = sum(len(image.gt_boxes) for image in images)
    matched = [match_image(image, threshold) for image in images]
    scores = np.concatenate([s for s, _ in matched]) if matched else np.zeros(0)
    if num_persons == 0:
        return dict.fromkeys(("AP50", "mMR", "recall"), float("nan"))
    if len(scores) == 0:
        return {"AP50": 0.0, "mMR": 100.0, "recall": 0.0}
    hits = np.concatenate([h for _, h in matched])[np.argsort(-scores, kind="stable")]
    true, false = hits.cumsum(), (1 - hits).cumsum()
    recall, precision = true / num_persons, true / (true + false)
    area = float(((precision[1:] + precision[:-1]) / 2 * np.diff(recall)).sum())  # trapezoids
    return {
        "AP50": 100.0 * area,
        "mMR": 100.0 * log_average_miss_rate(1 - recall, false / len(images)),
        "recall": 100.0 * float(recall[-1]),
    }


def log_average_miss_rate(miss_rate: np.ndarray, fppi: np.ndarray) -> float:
    """Geometric mean of the miss rates at nine numbers of false positives per image.

    Args:
        miss_rate: (n,) of the n best detections, not rising.
        fppi: (n,) false positives per image, not falling; beyond its end the last miss rate holds.
    """
    index = np.searchsorted(fppi, REFERENCE_FPPI, side="left").clip(max=len(fppi) - 1)
    return float(np.exp(np.log(miss_rate[index].clip(min=SMALLEST_MISS_RATE)).mean()))
