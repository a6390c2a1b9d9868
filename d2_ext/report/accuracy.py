"""AP by class and size, precision-recall curves and the confusion matrix of a test set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from d2_ext.report.blocks import Block, Chart, HeatTable, Table, Text, number
from d2_ext.report.charts import bar_chart, line_chart
from d2_ext.report.judged import RULES, SIZES, Judged
from d2_ext.report.verdicts import IOU_THRESHOLD, Verdict, confusion_matrix

import numpy as np

MAX_CURVES = 8  # more lines than colors cannot be told apart
IOU_50, IOU_75 = 0, 5  # places in COCO's ten thresholds


@dataclass(frozen=True)
class ClassAccuracy:
    """Figures of one class (or their mean), AP as fractions, NaN where it has no objects.

    Attributes:
        name: of the class.
        objects: small, medium, large ones.
        ap, ap50, ap75: over all sizes.
        by_size: AP of small, medium and large objects.
        best_f1: highest harmonic mean of precision and recall at IoU 0.5.
        best_score: the score threshold that gives it.
    """

    name: str
    objects: Sequence[int]
    ap: float
    ap50: float
    ap75: float
    by_size: Sequence[float]
    best_f1: float
    best_score: float


def class_accuracies(judged: Judged) -> list[ClassAccuracy]:
    """Figures of each class; for VisDrone's data the AP of its official tool."""
    precision, scores = judged.accumulated["precision"], judged.accumulated["scores"]  # (T, R, K, sizes)
    counts = judged.objects_per_class()
    official = judged.visdrone
    recall = np.linspace(0.0, 1.0, precision.shape[1])
    rows = []
    for k, name in enumerate(judged.class_names):
        # The highest F1 over the recall points, and the score there; NaN for a class without objects or detections.
        curve = precision[IOU_50, :, k, 0]
        total = curve + recall
        f1 = np.divide(2 * curve * recall, total, out=np.zeros(len(recall)), where=total > 0)
        best = int(f1.argmax())
        best_f1, best_score = float("nan"), float("nan")
        if f1[best] > 0:
            best_f1, best_score = float(f1[best]), float(scores[IOU_50, best, k, 0])
        if official is None:
            ap, ap50, ap75 = (_mean(precision[t, :, k, 0]) for t in (slice(None), IOU_50, IOU_75))
            by_size = [_mean(precision[:, :, k, 1 + size]) for size in range(len(SIZES))]
        else:
            ap, ap50, ap75 = official.ap[k].mean(), official.ap[k, IOU_50], official.ap[k, IOU_75]
            by_size = official.ap_by_size[:, k].mean(axis=1)
        sizes = [float(v) for v in by_size]
        figures = float(ap), float(ap50), float(ap75), sizes, best_f1, best_score
        rows.append(ClassAccuracy(name, counts[k], *figures))
    return rows


def accuracy_blocks(judged: Judged) -> list[Block]:
    """Table and bars of AP by class and size."""
    rows = class_accuracies(judged)
    table = [_table_row(row) for row in rows]
    if len(rows) > 1:

        def mean(values: Iterable[float]) -> float:
            finite = [v for v in values if np.isfinite(v)]
            return float(np.mean(finite)) if finite else float("nan")

        mean_class = ClassAccuracy(
            "mean, or sum of objects",
            np.sum([row.objects for row in rows], axis=0).tolist(),
            mean(row.ap for row in rows),
            mean(row.ap50 for row in rows),
            mean(row.ap75 for row in rows),
            [mean(row.by_size[i] for row in rows) for i in range(len(SIZES))],
            mean(row.best_f1 for row in rows),
            mean(row.best_score for row in rows),
        )
        table.append(_table_row(mean_class))
    blocks: list[Block] = [
        Text(
            f"{len(judged.records)} images of '{judged.dataset}', judged by {RULES[judged.rule]}, at most "
            f"{judged.max_detections} detections an image. AP is the mean over IoU 0.50 to 0.95, in per cent. Small "
            "is below 32² px, large from 96² px on. The last columns: the score threshold that balances precision and "
            "recall best at IoU 0.5, and the F1 there."
        ),
        Table(
            "AP by class and size",
            ["class", "objects", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "best score", "F1 there"],
            table,
        ),
    ]
    shown = [row for row in rows if sum(row.objects)]
    if shown:
        values = {"all": [row.ap for row in shown]}
        values |= {size: [row.by_size[i] for row in shown] for i, size in enumerate(SIZES)}
        groups = {name: [100 * v for v in bars] for name, bars in values.items() if np.isfinite(bars).any()}
        words = "; ".join(f"{row.name}: {number(100 * row.ap)}" for row in shown)
        blocks.append(
            Chart(
                bar_chart(groups, [row.name for row in shown], x_label="AP (%)"),
                f"Bars of AP by class, over all objects and by size. AP of all sizes: {words}.",
                "AP by class, over all objects and by their size. A size without objects has no bar.",
            )
        )
    return blocks


def curve_blocks(judged: Judged) -> list[Block]:
    """Precision over recall, by class at IoU 0.5 and of the mean class at several IoUs."""
    precision = judged.accumulated["precision"][..., 0]  # (T, R, K)
    present = [k for k in range(len(judged.class_names)) if precision[IOU_50, 0, k] > -1]
    if not present:
        return [Text("No class has objects, so there is no curve.")]
    recall = np.linspace(0.0, 1.0, precision.shape[1]).tolist()
    by_ap = sorted(present, key=lambda k: -precision[IOU_50, :, k].mean())[:MAX_CURVES]
    classes = {judged.class_names[k]: (recall, precision[IOU_50, :, k].tolist()) for k in by_ap}
    levels = {f"IoU {0.5 + 0.05 * t:.2f}": (recall, precision[t][:, present].mean(axis=1)) for t in (0, 2, 4, 5, 6, 8)}
    left_out = f" The {MAX_CURVES} classes of highest AP50 of {len(present)}." if len(present) > MAX_CURVES else ""
    draw = partial(line_chart, x_label="recall", y_label="precision", x_range=(0, 1), y_range=(0, 1.02))
    area = ", ".join(f"{name} {100 * float(np.mean(y)):.0f}" for name, (_, y) in classes.items())
    mean_area = ", ".join(f"{name} {100 * float(np.mean(y)):.0f}" for name, (_, y) in levels.items())
    return [
        Chart(
            draw(classes),
            f"Precision over recall by class at IoU 0.5. Area under each curve in per cent: {area}.",
            f"By class, at IoU 0.5.{left_out}",
        ),
        Chart(
            draw(levels),
            f"Precision over recall of the mean class by IoU threshold. Area in per cent: {mean_area}.",
            "Mean over the classes, by how exactly a box must fit.",
        ),
    ]


def confusion_blocks(judged: Judged, verdicts: Sequence[Verdict], score_threshold: float) -> list[Block]:
    """The confusion matrix with the background, which stands for missed objects and false detections."""
    matrix = confusion_matrix(judged, verdicts)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    ignored = sum(len(verdict.ignored) for verdict in verdicts)
    return [
        Text(
            f"Detections with a score of at least {score_threshold:g}, boxes that overlap with IoU {IOU_THRESHOLD} or "
            "more. A detection takes an object of its own class first; what is left over is matched across classes. "
            "The last column counts missed objects, the last row false detections; per cent is of the row."
            + (f" {ignored} detections in regions that are not judged are left out." if ignored else "")
        ),
        HeatTable(
            "Confusion matrix: objects of a class (row) by what they were detected as (column)",
            "true \\ detected",
            [*judged.class_names, "missed"],
            [*judged.class_names, "background"],
            matrix.tolist(),
            shares.tolist(),
        ),
    ]


def _table_row(row: ClassAccuracy) -> list[str]:
    ap = [number(100 * value) for value in (row.ap, row.ap50, row.ap75, *row.by_size)]
    return [row.name, str(sum(row.objects)), *ap, number(row.best_score, 2), number(row.best_f1, 2)]


def _mean(precision: np.ndarray) -> float:
    """As COCO: -1 marks what does not exist."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")
