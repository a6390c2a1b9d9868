"""The VisDrone metric against numbers computed by hand and against a slow, literal reference."""

from __future__ import annotations

from typing import Any

from d2_ext.evaluation.visdrone_metric import (
    IOU_THRESHOLDS,
    MAX_DETS,
    ImageBoxes,
    VisDroneResult,
    evaluate_visdrone,
    region_coverage,
)

import numpy as np
import pytest

Row = tuple[float, ...]


def _image(
    objects: list[Row] = (),  # x, y, w, h, class, ignored
    detections: list[Row] = (),  # x, y, w, h, class, score
    regions: list[Row] = (),
    size: tuple[int, int] = (1000, 1000),
) -> ImageBoxes:
    gt = np.array(objects, dtype=float).reshape(-1, 6)
    det = np.array(detections, dtype=float).reshape(-1, 6)
    return ImageBoxes(
        *size,
        gt[:, :4],
        gt[:, 4].astype(int),
        gt[:, 5] > 0,
        np.array(regions, dtype=float).reshape(-1, 4),
        det[:, :4],
        det[:, 5],
        det[:, 4].astype(int),
    )


def _summary(*images: ImageBoxes, classes: int = 1, weighting: str = "image_frequency") -> dict[str, float]:
    return evaluate_visdrone(images, classes).summary(weighting)


def test_perfect_detections_give_100_under_all_rules() -> None:
    objects = [(10, 10, 20, 20, 0, 0), (50, 50, 40, 40, 1, 0), (300, 300, 200, 200, 1, 0), (700, 10, 30, 30, 0, 1)]
    detections = [(*row[:5], 0.9) for row in objects]
    image = _image(objects, detections, regions=[(800, 800, 100, 100)])
    for weighting in ("image_frequency", "plain"):
        summary = _summary(image, image, classes=3, weighting=weighting)
        for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR10", "AR100", "AR500"):
            assert summary[key] == pytest.approx(100), key


def test_average_precision_interpolates_over_all_points() -> None:
    objects = [(0, 0, 10, 10, 0, 0), (100, 0, 10, 10, 0, 0)]
    detections = [(0, 0, 10, 10, 0, 0.9), (500, 500, 10, 10, 0, 0.8), (100, 0, 10, 10, 0, 0.7)]
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: AP = 1/2 * 1 + 1/2 * 2/3 = 5/6
    assert _summary(_image(objects, detections))["AP"] == pytest.approx(100 * 5 / 6)


def test_an_iou_of_six_tenths_reaches_three_of_ten_thresholds() -> None:
    summary = _summary(_image([(0, 0, 10, 10, 0, 0)], [(0, 0, 10, 6, 0, 0.5)]))  # IoU = 60 / 100
    assert summary["AP"] == pytest.approx(30)  # 0.50, 0.55, 0.60
    assert (summary["AP50"], summary["AP75"]) == (pytest.approx(100), 0)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    objects = [(0, 0, 10, 10, 0, 0), (100, 0, 10, 10, 0, 0)]
    detections = [(0, 0, 10, 10, 0, 0.9), (0, 0, 10, 10, 0, 0.8), (100, 0, 10, 10, 0, 0.7)]
    assert _summary(_image(objects, detections))["AP"] == pytest.approx(100 * 5 / 6)


def test_the_better_detection_takes_the_object_with_more_overlap() -> None:
    # IoU of the first detection: 8/10 with object 0, 9/10 with object 1; the second only reaches object 0 (9/10).
    objects = [(0, 0, 10, 9, 0, 0), (0, 1, 10, 9, 0, 0)]
    detections = [(0, 1, 10, 9, 0, 0.9), (0, 0, 10, 9, 0, 0.8)]
    assert _summary(_image(objects, detections))["AP"] == pytest.approx(100)


def test_a_detection_on_an_ignored_object_counts_neither_way() -> None:
    objects = [(0, 0, 10, 10, 0, 0), (100, 100, 50, 50, 0, 1)]
    inside = (110, 110, 10, 10, 0, 0.9)  # IoU 100/2500, but all of its own area is inside
    assert _summary(_image(objects, [inside, (0, 0, 10, 10, 0, 0.5)]))["AP"] == pytest.approx(100)
    other_class = (110, 110, 10, 10, 1, 0.9)  # an ignored object protects its own class only
    result = evaluate_visdrone([_image([*objects, (500, 500, 9, 9, 1, 0)], [other_class, (500, 500, 9, 9, 1, 0.5)])], 2)
    assert result.ap[1, 0] == pytest.approx(0.5)
    two_fifths_out = (136, 110, 20, 10, 0, 0.9)  # 14 of 20 px inside = 0.7: ignored at 0.50 .. 0.70, wrong above
    result = evaluate_visdrone([_image(objects, [two_fifths_out, (0, 0, 10, 10, 0, 0.5)])], 1)
    assert result.ap[0].tolist() == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_objects_and_detections_half_inside_a_region_are_dropped() -> None:
    region = [(101, 101, 99, 99)]  # covers 100 .. 200 in both directions: one pixel more than the box, to the left
    objects = [(10, 10, 10, 10, 0, 0), (195, 150, 10, 10, 0, 0)]  # the second: 5 of 10 px inside = 0.5, dropped
    detections = [(150, 95, 10, 10, 0, 0.9), (10, 10, 10, 10, 0, 0.5)]  # the first: 5 of 10 px inside, dropped
    result = evaluate_visdrone([_image(objects, detections, region)], 1)
    assert result.num_objects.tolist() == [1]
    assert result.summary()["AP"] == pytest.approx(100)
    detections[0] = (150, 94, 10, 10, 0, 0.9)  # 4 of 10 px inside: stays, and is wrong
    assert _summary(_image(objects, detections, region))["AP"] == pytest.approx(50)


def test_coverage_is_of_the_union_of_all_regions() -> None:
    boxes = np.array([[100.0, 100, 20, 10]])
    regions = np.array([[101.0, 90, 4, 50], [103, 90, 4, 50], [117, 90, 50, 50]])
    # x covered: 100..105, 102..107 (2 px of it new), 116..120 -> 5 + 2 + 4 = 11 of 20 px
    assert region_coverage(boxes, regions, 500, 500) == pytest.approx([11 / 20])
    assert region_coverage(boxes, regions[:0], 500, 500).tolist() == [0]


def test_coverage_equals_painting_the_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = rng.integers(20, 60, 2)
        draw = lambda n: np.concatenate([rng.integers(0, 55, (n, 2)), rng.integers(0, 30, (n, 2))], axis=1)  # noqa: E731
        boxes, regions = draw(20) + rng.uniform(-0.4, 0.4, (20, 4)), draw(4).astype(float)
        expected = [_painted_share(box, regions, int(height), int(width)) for box in boxes]
        np.testing.assert_allclose(region_coverage(boxes, regions, int(height), int(width)), expected)


def test_the_500_best_of_the_image_count_over_all_classes() -> None:
    crowd = [(float(x), 500.0, 5.0, 5.0, 0, 0.9) for x in range(500)]
    objects = [(0, 500, 5, 5, 0, 0), (10, 10, 20, 20, 1, 0)]
    late = (10, 10, 20, 20, 1, 0.1)  # number 501
    assert evaluate_visdrone([_image(objects, [*crowd, late])], 2).ap[1].tolist() == [0] * 10
    assert evaluate_visdrone([_image(objects, [*crowd[:-1], late])], 2).ap[1].tolist() == [1] * 10
    # a detection in an ignored region takes no place
    hidden = [(*row[:1], 900.0, *row[2:]) for row in crowd[:100]]
    image = _image(objects, [*hidden, *crowd[:-1], late], regions=[(1, 880, 999, 99)])
    assert evaluate_visdrone([image], 2).ap[1].tolist() == [1] * 10


def test_recall_with_few_detections_is_cut_over_classes_too() -> None:
    objects = [(0, 0, 10, 10, 0, 0), (100, 0, 10, 10, 1, 0)]
    result = evaluate_visdrone([_image(objects, [(*objects[0][:5], 0.9), (*objects[1][:5], 0.8)])], 2)
    assert result.ar[:, 0].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    summary = result.summary()
    assert (summary["AR1"], summary["AR10"]) == (pytest.approx(50), pytest.approx(100))


def test_a_class_weighs_as_many_times_as_images_show_it() -> None:
    cars = [(0, 0, 10, 10, 0, 0), (50, 0, 10, 10, 0, 0)]  # two in one image weigh once
    found = [(*car[:5], 0.9) for car in cars]
    images = [_image(cars, found), _image(cars, found), _image([*cars, (100, 0, 10, 10, 1, 0)], found)]
    # car: AP 100 in 3 images; bus: AP 0 in 1 image; the third class has no object
    assert _summary(*images, classes=3)["AP"] == pytest.approx((3 * 100 + 1 * 0) / 4)
    assert _summary(*images, classes=3, weighting="plain")["AP"] == pytest.approx(50)


def test_a_class_whose_objects_are_all_in_regions_has_no_weight() -> None:
    image = _image([(10, 10, 10, 10, 0, 0), (500, 500, 10, 10, 1, 0)], [(10, 10, 10, 10, 0, 0.9)], [(490, 490, 50, 50)])
    result = evaluate_visdrone([image], 2)
    assert result.num_images.tolist() == [1, 0]
    assert np.isnan(result.ap[1]).all()
    assert result.summary()["AP"] == pytest.approx(100)


def test_sizes_take_hits_from_the_object_and_misses_from_the_detection() -> None:
    objects = [(0, 0, 20, 20, 0, 0), (100, 0, 50, 50, 0, 0), (300, 0, 100, 100, 0, 0)]  # 400, 2500, 10000 px^2
    detections = [(0, 0, 20, 20, 0, 0.5), (100, 0, 50, 50, 0, 0.5), (600, 600, 20, 20, 0, 0.9)]
    summary = _summary(_image(objects, detections))
    # small: wrong (0.9), then right (0.5): precision 1/2 at recall 1; medium: right; large: not found
    assert (summary["APs"], summary["APm"], summary["APl"]) == (pytest.approx(50), pytest.approx(100), 0)


def test_nothing_detected_is_0_and_nothing_to_detect_is_nan() -> None:
    assert _summary(_image([(0, 0, 10, 10, 0, 0)]))["AP"] == 0
    assert np.isnan(_summary(_image([], [(0, 0, 10, 10, 0, 0.5)]))["AP"])
    assert np.isnan(evaluate_visdrone([], 2).summary()["AP"])


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match="class_weighting='mean'"):
        _summary(_image(), weighting="mean")


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_the_literal_reference_on_random_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [_random_image(rng) for _ in range(3)]
    result, (ap, ar, num_images) = evaluate_visdrone(images, 3), _reference(images, 3)
    seen = num_images > 0
    np.testing.assert_array_equal(result.num_images, num_images)
    np.testing.assert_allclose(result.ap[seen], ap[seen], atol=1e-12)
    np.testing.assert_allclose(result.ar[seen], ar[seen], atol=1e-12)
    _check_summary(result, ap, num_images)


def _check_summary(result: VisDroneResult, ap: np.ndarray, num_images: np.ndarray) -> None:
    listed = [k for k in range(len(ap)) for _ in range(num_images[k])]
    assert result.summary()["AP"] == pytest.approx(100 * ap[listed].mean())
    assert result.summary("plain")["AP50"] == pytest.approx(100 * ap[num_images > 0, 0].mean())


def _random_image(rng: np.random.Generator) -> ImageBoxes:
    """Crowded: objects of 3 classes, one in five ignored, with a region and detections near the objects."""
    count = int(rng.integers(1, 9))
    gt = np.concatenate([rng.integers(0, 60, (count, 2)), rng.integers(5, 25, (count, 2))], axis=1).astype(float)
    source = rng.integers(0, count, 25)
    det = gt[source] + rng.integers(-3, 4, (25, 4))
    det[:, 2:] = det[:, 2:].clip(1)
    gt_classes = rng.integers(0, 3, count)
    det_classes = np.where(rng.random(25) < 0.8, gt_classes[source], rng.integers(0, 3, 25))
    regions = np.concatenate([rng.integers(0, 60, (1, 2)), rng.integers(5, 30, (1, 2))], axis=1).astype(float)
    scores = rng.permutation(25) / 25  # no ties
    return ImageBoxes(80, 80, gt, gt_classes, rng.random(count) < 0.2, regions, det, scores, det_classes)


def _reference(images: list[ImageBoxes], num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP (K, T), AR (K, T, 4) and images per class (K,), one class, threshold and limit at a time."""
    kept = [_reference_filter(image) for image in images]
    ap = np.zeros((num_classes, len(IOU_THRESHOLDS)))
    ar = np.zeros((num_classes, len(IOU_THRESHOLDS), len(MAX_DETS)))
    num_images = np.zeros(num_classes, dtype=int)
    for k in range(num_classes):
        num_images[k] = sum(any(g["class"] == k and not g["ignored"] for g in gts) for gts, _ in kept)
        total = sum(g["class"] == k and not g["ignored"] for gts, _ in kept for g in gts)
        for t, threshold in enumerate(IOU_THRESHOLDS):
            for m, limit in enumerate(MAX_DETS):
                verdicts = [v for gts, dets in kept for v in _reference_match(gts, dets[:limit], k, threshold)]
                verdicts.sort(key=lambda v: -v[0])
                right = sum(v == "right" for _, v in verdicts)
                ar[k, t, m] = right / max(1, total)
            ap[k, t] = _reference_ap([v for _, v in verdicts if v != "ignored"], total)
    return ap, ar, num_images


def _reference_filter(image: ImageBoxes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    share = lambda box: _painted_share(box, image.regions, image.height, image.width)  # noqa: E731
    gts = [
        {"box": box, "class": k, "ignored": ignored}
        for box, k, ignored in zip(image.gt_boxes, image.gt_classes, image.gt_ignored)
        if share(box) < 0.5
    ]
    dets = [
        {"box": box, "class": k, "score": score}
        for box, k, score in zip(image.det_boxes, image.det_classes, image.det_scores)
        if share(box) < 0.5
    ]
    return gts, sorted(dets, key=lambda d: -d["score"])


def _painted_share(box: np.ndarray, regions: np.ndarray, height: int, width: int) -> float:
    """Paint the regions, pixels numbered from 1; count the pixels x + 1 .. x + w, y + 1 .. y + h of the box."""
    painted = np.zeros((height + 1, width + 1))
    for region in regions:
        x, y, w, h = (max(1, int(v)) for v in region)
        painted[y : min(height, y + h) + 1, x : min(width, x + w) + 1] = 1
    x, y, w, h = (max(1, int(np.floor(v + 0.5))) for v in box)
    x, y = min(width, x), min(height, y)
    return painted[y + 1 : y + h + 1, x + 1 : x + w + 1].sum() / (w * h)


def _reference_match(
    gts: list[dict[str, Any]], dets: list[dict[str, Any]], k: int, threshold: float
) -> list[tuple[float, str]]:
    normal = [g["box"] for g in gts if g["class"] == k and not g["ignored"]]
    ignored = [g["box"] for g in gts if g["class"] == k and g["ignored"]]
    taken: set[int] = set()
    verdicts = []
    for det in (d for d in dets if d["class"] == k):
        best, best_iou = None, threshold
        for g, box in enumerate(normal):
            inter = _inter(det["box"], box)
            iou = inter / (det["box"][2] * det["box"][3] + box[2] * box[3] - inter)
            if g not in taken and iou >= best_iou:
                best, best_iou = g, iou
        inside = max((_inter(det["box"], box) / (det["box"][2] * det["box"][3]) for box in ignored), default=0)
        if best is not None:
            taken.add(best)
        verdicts.append((det["score"], "right" if best is not None else "ignored" if inside >= threshold else "wrong"))
    return verdicts


def _inter(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def _reference_ap(verdicts: list[str], total: int) -> float:
    if not total:
        return 0.0
    points = []  # recall, precision
    for n in range(1, len(verdicts) + 1):
        right = verdicts[:n].count("right")
        points.append((right / total, right / n))
    recalls = sorted({recall for recall, _ in points} - {0})
    area, before = 0.0, 0.0
    for recall in recalls:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area
