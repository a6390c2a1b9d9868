"""What became of each detection and each object of an image, at one score threshold and one IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from d2_ext.report.judged import Judged

import numpy as np
from pycocotools import mask as mask_util

IOU_THRESHOLD = 0.5


@dataclass
class Verdict:
    """One image; rows are those of COCO annotations and results.

    Attributes:
        found: (detection, object) of the same class that overlap enough.
        confused: the same of two classes.
        false: detections that overlap no free object enough.
        ignored: detections that would be false, but lie in a region or crowd that is not judged.
        missed: objects that no detection, of whatever class, was left for.
        regions: what is not judged.
    """

    found: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    confused: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    false: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[dict[str, Any]] = field(default_factory=list)
    missed: list[dict[str, Any]] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mistakes(self) -> int:
        """Missed and confused objects, and false detections."""
        return len(self.false) + len(self.missed) + len(self.confused)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, of detections with the right class; 0 if nothing is there at all."""
        wrong_detections, unfound_objects = len(self.false), len(self.missed)
        total = 2 * len(self.found) + 2 * len(self.confused) + wrong_detections + unfound_objects
        return 2 * len(self.found) / total if total else 0.0


def judge_image(judged: Judged, image_id: Any, score_threshold: float) -> Verdict:
    """Match detections and objects of one image.

    Best detections first, each takes the free object of its class with the highest IoU of at least 0.5, as the metric
    does; what is left over is then matched in the same way without regard to the class.

    Args:
        judged: the test set.
        image_id: of the image.
        score_threshold: detections below it do not count.
    """
    truth = judged.truth.imgToAnns.get(image_id, [])
    objects = [row for row in truth if not row.get("iscrowd", 0)]
    verdict = Verdict(regions=[row for row in truth if row.get("iscrowd", 0)])
    detections = [row for row in judged.by_image.get(image_id, []) if row["score"] >= score_threshold]
    iou = _overlaps(detections, objects, crowd=False)
    same_class = _same_class(detections, objects)
    free = np.ones(len(objects), dtype=bool)
    left = []
    for index, row in enumerate(detections):
        partner = _best(iou[index], free & same_class[index])
        if partner is None:
            left.append(index)
        else:
            free[partner] = False
            verdict.found.append((row, objects[partner]))
    # What lies in a crowd of its class is not judged.
    rest = [detections[i] for i in left]
    inside = _overlaps(rest, verdict.regions, crowd=True) * _same_class(rest, verdict.regions)
    ignored = inside.max(axis=1, initial=0.0) >= IOU_THRESHOLD
    verdict.ignored += [row for row, is_ignored in zip(rest, ignored) if is_ignored]
    for index in (index for index, is_ignored in zip(left, ignored) if not is_ignored):
        partner = _best(iou[index], free)
        if partner is None:
            verdict.false.append(detections[index])
        else:
            free[partner] = False
            verdict.confused.append((detections[index], objects[partner]))
    verdict.missed += [objects[i] for i in np.flatnonzero(free)]
    return verdict


def confusion_matrix(judged: Judged, verdicts: Sequence[Verdict]) -> np.ndarray:
    """(K + 1, K + 1) counts: row the true class, column the detected one; the last of each is the background."""
    place = {category: index for index, category in enumerate(judged.category_ids)}
    background = len(place)
    matrix = np.zeros((background + 1, background + 1), dtype=int)
    for verdict in verdicts:
        for detection, target in (*verdict.found, *verdict.confused):
            matrix[place[target["category_id"]], place[detection["category_id"]]] += 1
        for detection in verdict.false:
            matrix[background, place[detection["category_id"]]] += 1
        for target in verdict.missed:
            matrix[place[target["category_id"]], background] += 1
    return matrix


def _best(iou: np.ndarray, allowed: np.ndarray) -> int | None:
    candidates = np.where(allowed, iou, 0.0)
    best = int(candidates.argmax()) if len(candidates) else 0
    return best if len(candidates) and candidates[best] >= IOU_THRESHOLD else None


def _overlaps(detections: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], *, crowd: bool) -> np.ndarray:
    """(D, G) IoU, or the share of each detection's own area that a crowd covers."""
    if not detections or not others:
        return np.zeros((len(detections), len(others)))
    boxes = [np.array([row["bbox"] for row in rows], dtype=np.float64) for rows in (detections, others)]
    return mask_util.iou(*boxes, [int(crowd)] * len(others))


def _same_class(detections: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> np.ndarray:
    classes = [np.array([row["category_id"] for row in rows], dtype=np.int64) for rows in (detections, others)]
    return classes[0][:, None] == classes[1][None]
