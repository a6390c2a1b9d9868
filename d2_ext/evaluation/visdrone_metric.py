"""The metric of the official VisDrone-DET tool, in NumPy and without files or frameworks.

The rules follow the newest public version of the tool (repository VisDrone2018-DET-toolkit, 2019):

1. Ignored regions are the boxes of class 0. An object or a detection is dropped if at least half of its own area lies
   inside their *union* (:func:`region_coverage`). All regions of the image count, and only regions; a known Python
   port compares with the objects instead, which is not what the tool does.
2. The detections that are left are cut to the best 1, 10, 100 or 500 of the *image*, all classes together.
3. Per class and IoU threshold, detections are matched greedily in the order of their score, each to the free object
   of highest IoU. One that finds no object, but has ``intersection / own area >= threshold`` with an object marked as
   ignored (score 0 in the file), counts neither as right nor as wrong.
4. AP is the area under the all-point interpolated curve at 0.50:0.05:0.95 with 500 detections; AR is the recall reached
   with 1, 10, 100, 500 detections, averaged over the thresholds.
5. The mean over classes counts a class once for every image in which it occurs (``image_frequency``).

One deviation: the tool counts ignored objects as missed ones in the recall. Here they count nowhere. The official files
mark only classes 0 and 11 as ignored, so their figures are the same.

Shapes: K classes, T = 10 thresholds; of one image M objects, V regions, D detections. Boxes are XYWH px of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "CLASS_WEIGHTINGS",
    "IOU_THRESHOLDS",
    "MAX_DETS",
    "ImageBoxes",
    "VisDroneResult",
    "drop_ignored_regions",
    "evaluate_visdrone",
]

IOU_THRESHOLDS = np.round(np.arange(0.5, 1.0, 0.05), 2)
MAX_DETS = (1, 10, 100, 500)
CLASS_WEIGHTINGS = ("image_frequency", "plain")
SIZE_NAMES = ("s", "m", "l")
_SIZE_BORDERS = (32.0**2, 96.0**2)  # px^2; COCO's small, medium and large
_NUM_THRESHOLDS = len(IOU_THRESHOLDS)
_ALL_BITS = (1 << _NUM_THRESHOLDS) - 1


@dataclass(frozen=True)
class ImageBoxes:
    """Ground truth and detections of one image; boxes are XYWH in px of the image.

    Attributes:
        height: of the image, px.
        width: of the image, px.
        gt_boxes: (M, 4).
        gt_classes: (M,) integers in [0, K).
        gt_ignored: (M,) bool, true for objects marked as ignored (score 0).
        regions: (V, 4) ignored regions (class 0 in the file).
        det_boxes: (D, 4), in any order.
        det_scores: (D,).
        det_classes: (D,) integers in [0, K).
    """

    height: int
    width: int
    gt_boxes: np.ndarray
    gt_classes: np.ndarray
    gt_ignored: np.ndarray
    regions: np.ndarray
    det_boxes: np.ndarray
    det_scores: np.ndarray
    det_classes: np.ndarray


@dataclass(frozen=True)
class VisDroneResult:
    """Figures per class, as fractions; NaN where a class has no objects.

    Attributes:
        ap: (K, T) average precision.
        ap_by_size: (3, K, T) the same for small, medium and large objects (an extra; the tool has no sizes).
        ar: (K, T, 4) recall with at most 1, 10, 100, 500 detections per image.
        num_objects: (K,) objects that count.
        num_images: (K,) images with at least one of them: the weights of ``image_frequency``.
    """

    ap: np.ndarray
    ap_by_size: np.ndarray
    ar: np.ndarray
    num_objects: np.ndarray
    num_images: np.ndarray

    def summary(self, class_weighting: str = "image_frequency") -> dict[str, float]:
        """The figures of the tool in per cent, and AP by size.

        Args:
            class_weighting: ``image_frequency`` as in the tool, or ``plain``, the mean over classes with objects.

        Returns:
            AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, AR500.

        Raises:
            ValueError: for an unknown weighting.
        """
        if class_weighting not in CLASS_WEIGHTINGS:
            raise ValueError(f"class_weighting={class_weighting!r} is not known. Choose from {CLASS_WEIGHTINGS}.")
        weights = self.num_images if class_weighting == "image_frequency" else self.num_images > 0
        columns = {
            "AP": self.ap.mean(axis=1),
            "AP50": self.ap[:, 0],
            "AP75": self.ap[:, IOU_THRESHOLDS.tolist().index(0.75)],
            **{f"AP{size}": self.ap_by_size[i].mean(axis=1) for i, size in enumerate(SIZE_NAMES)},
            **{f"AR{limit}": self.ar[:, :, i].mean(axis=1) for i, limit in enumerate(MAX_DETS)},
        }
        return {name: 100.0 * _weighted_mean(values, weights) for name, values in columns.items()}


def evaluate_visdrone(images: Sequence[ImageBoxes], num_classes: int) -> VisDroneResult:
    """Compute the VisDrone-DET metric of a set of images.

    Args:
        images: all images of the split, also those without detections.
        num_classes: K.

    Returns:
        The figures per class.

    Example:
        >>> one = np.array([[10.0, 10, 20, 20]])
        >>> none, zero = np.zeros((0, 4)), np.zeros(1, int)
        >>> image = ImageBoxes(100, 100, one, zero, zero > 0, none, one, np.array([0.9]), zero)
        >>> round(evaluate_visdrone([image], num_classes=1).summary()["AP"], 6)
        100.0
    """
    matches = [_match_image(drop_ignored_regions(image), num_classes) for image in images]
    num_objects = np.zeros((num_classes, len(SIZE_NAMES)), dtype=np.int64)
    num_images = np.zeros(num_classes, dtype=np.int64)
    for match in matches:
        num_objects += match.num_objects
        num_images += match.num_objects.any(axis=1)
    rows = np.concatenate([match.rows for match in matches]) if matches else np.zeros(0, dtype=_ROW)

    ap = np.full((num_classes, _NUM_THRESHOLDS), np.nan)
    ap_by_size = np.full((len(SIZE_NAMES), num_classes, _NUM_THRESHOLDS), np.nan)
    ar = np.full((num_classes, _NUM_THRESHOLDS, len(MAX_DETS)), np.nan)
    for k in np.flatnonzero(num_images):
        of_class = rows[rows["class"] == k]
        of_class = of_class[np.argsort(-of_class["score"], kind="stable")]
        ap[k], ap_by_size[:, k], ar[k] = _curves(of_class, num_objects[k])
    return VisDroneResult(ap, ap_by_size, ar, num_objects.sum(axis=1), num_images)


def region_coverage(boxes: np.ndarray, regions: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fraction of each box's area inside the union of the ignored regions, on the pixel grid of the official tool.

    The tool paints the regions into an image-sized map and sums it over each box. Its conventions, kept here: corners
    and sides are rounded and are at least 1 (its coordinates count from 1); a region is one pixel wider and higher than
    its box; the part of a box outside the image is uncovered. The sum is computed from the grid of all region
    borders, without a map.

    Args:
        boxes: (D, 4) XYWH px.
        regions: (V, 4) XYWH px, may overlap each other.
        height: of the image, px.
        width: of the image, px.

    Returns:
        (D,) in [0, 1].
    """
    if len(regions) == 0 or len(boxes) == 0:
        return np.zeros(len(boxes))
    limit = np.array([width, height], dtype=np.float64)
    region = np.maximum(1, np.floor(regions + 0.5))
    region_end = np.minimum(limit, region[:, :2] + region[:, 2:])
    region_start = np.minimum(region[:, :2] - 1, region_end)
    box = np.maximum(1, np.floor(boxes + 0.5))
    box_start = np.minimum(limit, box[:, :2])
    box_end = np.minimum(limit, box_start + box[:, 2:])

    lengths, inside = [], []
    for axis in (0, 1):
        borders = np.unique(np.concatenate([region_start[:, axis], region_end[:, axis]]))
        low, high = borders[:-1], borders[1:]
        overlap = np.minimum(box_end[:, axis, None], high) - np.maximum(box_start[:, axis, None], low)
        lengths.append(overlap.clip(min=0))  # (D, cells of this axis)
        inside.append((region_start[:, axis, None] <= low) & (high <= region_end[:, axis, None]))  # (V, cells)
    painted = np.einsum("rx,ry->xy", inside[0].astype(np.int64), inside[1].astype(np.int64)) > 0
    covered = ((lengths[0] @ painted) * lengths[1]).sum(axis=1)
    return covered / box[:, 2:].prod(axis=1)


def drop_ignored_regions(image: ImageBoxes) -> ImageBoxes:
    """Rules 1 and 2: drop what lies in regions, sort detections by score, keep the best 500 of the image."""
    size = (image.height, image.width)
    gt_kept = region_coverage(image.gt_boxes, image.regions, *size) < 0.5
    det_kept = np.flatnonzero(region_coverage(image.det_boxes, image.regions, *size) < 0.5)
    order = det_kept[np.argsort(-image.det_scores[det_kept], kind="stable")][: MAX_DETS[-1]]
    return ImageBoxes(
        *size,
        image.gt_boxes[gt_kept],
        image.gt_classes[gt_kept],
        image.gt_ignored[gt_kept],
        image.regions,
        image.det_boxes[order],
        image.det_scores[order],
        image.det_classes[order],
    )


# One row per detection. "hits" holds 3 x T bits: bit t + T * s says "matched to an object of size s at threshold t";
# "ignored" holds T bits: "on an ignored object", which matters where there is no hit. Bits cost far less than T
# booleans per row, and let the greedy matching treat all thresholds at once.
_ROW = np.dtype(
    [("class", "i4"), ("score", "f8"), ("rank", "i4"), ("size", "i4"), ("hits", "i8"), ("ignored", "i8")],
)


@dataclass(frozen=True)
class _ImageMatch:
    """Outcome of one image: detections as rows of ``_ROW``, and its counted objects (K, 3) by class and size."""

    rows: np.ndarray
    num_objects: np.ndarray


def _match_image(image: ImageBoxes, num_classes: int) -> _ImageMatch:
    """Rule 3 for all classes and thresholds of one image whose detections are sorted by score.

    One pass serves all limits of detections: what a detection is matched to depends only on those before it.
    """
    counted = ~image.gt_ignored.astype(bool)
    gt_boxes, gt_classes = image.gt_boxes[counted], image.gt_classes[counted]
    gt_sizes = _size_index(gt_boxes)
    num_objects = np.zeros((num_classes, len(SIZE_NAMES)), dtype=np.int64)
    np.add.at(num_objects, (gt_classes, gt_sizes), 1)

    rows = np.zeros(len(image.det_scores), dtype=_ROW)
    rows["class"], rows["score"] = image.det_classes, image.det_scores
    rows["rank"], rows["size"] = np.arange(len(rows)), _size_index(image.det_boxes)
    rows["hits"] = _match_greedily(image, gt_boxes, gt_classes, gt_sizes)
    rows["ignored"] = _touches_ignored(image, ~counted)
    return _ImageMatch(rows, num_objects)


def _match_greedily(
    image: ImageBoxes, gt_boxes: np.ndarray, gt_classes: np.ndarray, gt_sizes: np.ndarray
) -> np.ndarray:
    """Match each detection to the free object of its class with the highest IoU; of equal ones to the last one.

    Returns:
        (D,) "hits" bits as in ``_ROW``.
    """
    inter = _intersections(image.det_boxes, gt_boxes)
    union = _areas(image.det_boxes)[:, None] + _areas(gt_boxes) - inter
    iou = np.where(image.det_classes[:, None] == gt_classes, inter / np.maximum(union, 1e-12), 0.0)
    det, gt = np.nonzero(iou >= IOU_THRESHOLDS[0])
    order = np.lexsort((-gt, -iou[det, gt], det))
    det, gt = det[order], gt[order]

    hits, unmatched, free = [0] * len(iou), [_ALL_BITS] * len(iou), [_ALL_BITS] * len(gt_boxes)
    shifts = (gt_sizes * _NUM_THRESHOLDS).tolist()
    for d, g, reached in zip(det.tolist(), gt.tolist(), _bits_reached(iou[det, gt]).tolist()):
        won = reached & unmatched[d] & free[g]
        unmatched[d] ^= won
        free[g] ^= won
        hits[d] |= won << shifts[g]
    return np.array(hits, dtype=np.int64)


def _touches_ignored(image: ImageBoxes, ignored: np.ndarray) -> np.ndarray:
    """(D,) bits of the thresholds that ``intersection / own area`` with an ignored object of the class reaches."""
    if not ignored.any():
        return np.zeros(len(image.det_scores), dtype=np.int64)
    share = _intersections(image.det_boxes, image.gt_boxes[ignored])
    share /= np.maximum(_areas(image.det_boxes), 1e-12)[:, None]
    share[image.det_classes[:, None] != image.gt_classes[ignored]] = 0
    return _bits_reached(share.max(axis=1))


def _curves(rows: np.ndarray, num_objects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP (T,), AP by size (3, T) and AR (T, 4) of one class from its rows in the order of falling score.

    Each detection belongs to one size: that of the object it found, else its own.
    """
    hits_by_size = [_unpack(rows["hits"] >> (size * _NUM_THRESHOLDS)) for size in range(len(SIZE_NAMES))]
    hits = np.logical_or.reduce(hits_by_size)
    misses = ~hits & ~_unpack(rows["ignored"])
    total = num_objects.sum()
    ap = _average_precision(hits, misses, total)
    ap_by_size = np.stack(
        [
            _average_precision(hits_by_size[size], misses & (rows["size"] == size), num_objects[size])
            for size in range(len(SIZE_NAMES))
        ]
    )
    ar = np.stack([hits[:, rows["rank"] < limit].sum(axis=1) / total for limit in MAX_DETS], axis=1)
    return ap, ap_by_size, ar


def _average_precision(hits: np.ndarray, misses: np.ndarray, num_objects: int) -> np.ndarray:
    """(T,) area under the all-point interpolated precision of (T, D) hits and misses; NaN without objects."""
    if num_objects == 0:
        return np.full(len(hits), np.nan)
    right, wrong = hits.cumsum(axis=1), misses.cumsum(axis=1)
    precision = right / np.maximum(1, right + wrong)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (hits * envelope).sum(axis=1) / num_objects  # recall grows by 1 / num_objects at every hit


def _unpack(bits: np.ndarray) -> np.ndarray:
    """(D,) integers to (T, D) booleans of their lowest T bits."""
    return ((bits >> np.arange(_NUM_THRESHOLDS)[:, None]) & 1).astype(bool)


def _bits_reached(overlap: np.ndarray) -> np.ndarray:
    """Bits of the thresholds that an overlap reaches: bit t is set if ``overlap >= IOU_THRESHOLDS[t]``."""
    return (1 << np.searchsorted(IOU_THRESHOLDS, overlap, side="right").astype(np.int64)) - 1


def _intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(D, M) areas of intersection of D with M XYWH boxes."""
    start = np.maximum(a[:, None, :2], b[None, :, :2])
    end = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    return (end - start).clip(min=0).prod(axis=2)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] * boxes[:, 3]


def _size_index(boxes: np.ndarray) -> np.ndarray:
    """0, 1, 2 for small (< 32^2 px^2), medium and large (>= 96^2 px^2)."""
    return np.digitize(_areas(boxes), _SIZE_BORDERS)


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the values that exist; NaN if none does."""
    exists = ~np.isnan(values)
    total = weights[exists].sum()
    return float((values[exists] * weights[exists]).sum() / total) if total else float("nan")
