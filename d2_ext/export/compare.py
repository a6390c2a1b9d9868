"""Do an exported file and the model detect the same?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2_ext.errors import ExportError
from d2_ext.export.runtimes import Detections

import numpy as np

BOX_TOLERANCE = 0.05  # px; float32 sums in another order differ by about 1e-4
SCORE_TOLERANCE = 1e-3
SURE_SCORE = 0.3  # detections from here on count for the agreement of rounded weights
SAME_OBJECT_IOU = 0.5
MIN_AGREEMENT = 0.8  # of rounded weights: share of the sure detections that must be found again


@dataclass(frozen=True)
class Comparison:
    """Differences between two sets of detections of the same images.

    Attributes:
        images: how many of them have detections.
        detections: of the first side.
        matched: how many of them have a partner of the same class within the tolerances.
        unmatched: detections of either side without partner of the same class within the tolerances, except those
            whose score lies within the tolerance of the threshold, or of the last one kept of a full image.
        max_box_diff: px, largest difference of a coordinate of partners.
        max_score_diff: largest difference of their scores.
        agreement: share of the sure detections of either side that have a partner of the same class with IoU >= 0.5 on
            the other; 1 if there are none.
    """

    images: int
    detections: int
    matched: int
    unmatched: int
    max_box_diff: float
    max_score_diff: float
    agreement: float


def compare(
    expected: Sequence[Detections], found: Sequence[Detections], *, score_thresh: float, max_detections: int
) -> Comparison:
    """Match the detections of the same batches.

    Args:
        expected: one entry a batch, of the model.
        found: the same batches, of the exported file.
        score_thresh, max_detections: of the detector.
    """
    totals, box_diffs, score_diffs, agreeing, sure, images = 0, [0.0], [0.0], 0, 0, 0
    matched, unmatched = 0, 0
    for left, right in zip(expected, found, strict=True):
        for number in range(1 + max([-1, *left.image.tolist(), *right.image.tolist()])):
            a, b = _of_image(left, number), _of_image(right, number)
            pairs = _partners(a, b)
            box_diffs += [float(np.abs(a.boxes[i] - b.boxes[j]).max()) for i, j in pairs]
            score_diffs += [float(abs(a.scores[i] - b.scores[j])) for i, j in pairs]
            for side, partners in ((a, [i for i, _ in pairs]), (b, [j for _, j in pairs])):
                # Rounding may add or drop a detection at the threshold, and the last of a full image.
                borderline = side.scores <= score_thresh + SCORE_TOLERANCE
                if len(side.scores) >= max_detections:
                    borderline |= side.scores <= side.scores.min() + SCORE_TOLERANCE
                alone = np.delete(np.arange(len(side.scores)), partners)
                unmatched += int((~borderline)[alone].sum())
            agreeing += _found_again(a, b) + _found_again(b, a)
            sure += int((a.scores >= SURE_SCORE).sum() + (b.scores >= SURE_SCORE).sum())
            totals += len(a.scores)
            matched += len(pairs)
            images += 1
    agreement = agreeing / sure if sure else 1.0
    return Comparison(images, totals, matched, unmatched, max(box_diffs), max(score_diffs), agreement)


def check_same(comparison: Comparison, *, rounded: bool) -> None:
    """Refuse a file that does not detect what the model does.

    Args:
        comparison: of the model with the file.
        rounded: whether its weights are, so that scores may differ; sure detections must be found again.

    Raises:
        ExportError: saying by how much they differ.
    """
    if rounded and comparison.agreement < MIN_AGREEMENT:
        raise ExportError(
            f"Only {comparison.agreement:.0%} of the sure detections are found again; expected {MIN_AGREEMENT:.0%}. "
            "Nothing was written. Calibrate on more images like those of the use, or export without rounding."
        )
    if not rounded and comparison.unmatched:
        raise ExportError(
            f"{comparison.unmatched} of {comparison.detections} detections differ from the model's by more than "
            f"{BOX_TOLERANCE} px or {SCORE_TOLERANCE} of score. Nothing was written. Please report it with the config."
        )


def _of_image(detections: Detections, number: int) -> Detections:
    keep = detections.image == number
    return Detections(*(column[keep] for column in detections))


def _partners(a: Detections, b: Detections) -> list[tuple[int, int]]:
    """Pairs of equal class within the tolerances, each detection in one at most, the best of ``a`` first."""
    pairs, free = [], np.ones(len(b.scores), dtype=bool)
    for i in range(len(a.scores)):
        distance = np.abs(b.boxes - a.boxes[i]).max(axis=1) if len(b.boxes) else np.zeros(0)
        possible = free & (b.classes == a.classes[i]) & (distance <= BOX_TOLERANCE)
        possible &= np.abs(b.scores - a.scores[i]) <= SCORE_TOLERANCE
        if possible.any():
            j = int(np.where(possible, distance, np.inf).argmin())
            pairs.append((i, j))
            free[j] = False
    return pairs


def _found_again(a: Detections, b: Detections) -> int:
    """How many sure detections of ``a`` have a box of their class in ``b``, of any score."""
    count = 0
    for box, score, category in zip(a.boxes, a.scores, a.classes):
        same = b.boxes[b.classes == category]
        if score >= SURE_SCORE and len(same):
            sides = np.minimum(box[2:], same[:, 2:]) - np.maximum(box[:2], same[:, :2])
            overlap = sides.clip(min=0).prod(axis=1)
            areas = (same[:, 2:] - same[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
            count += bool((overlap / (areas - overlap)).max() >= SAME_OBJECT_IOU)
    return count
