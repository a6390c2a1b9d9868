"""Evaluator of the official VisDrone-DET metric; the rules are in :mod:`d2_ext.evaluation.visdrone_metric`."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.evaluation.predictions import NOTHING, Prediction, RecordEvaluator, finite_or_none
from d2_ext.evaluation.visdrone_metric import (
    CLASS_WEIGHTINGS,
    SIZE_NAMES,
    ImageBoxes,
    VisDroneResult,
    evaluate_visdrone,
)
from d2_ext.files import replacing

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from tabulate import tabulate

__all__ = ["VisDroneEvaluator", "image_boxes"]

RESULT_FOLDER = "visdrone_results"
RESULT_JSON = "visdrone_metrics.json"
REGION_CATEGORY = 0


class VisDroneEvaluator(RecordEvaluator):
    """AP and AR by the rules of the official VisDrone-DET tool.

    The data set's dicts carry, beside the usual keys, ``ignore_regions`` (XYWH boxes) and, in parallel,
    ``ignore_categories``, the category numbers of the file: 0 is an ignored region, 1..K an object of that class that
    is marked as ignored, and others (VisDrone's 11) play no role in the metric. Without ``ignore_categories``
    all are regions.

    Only the main process computes; predictions of all workers are gathered there, as ``COCOEvaluator`` does.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        class_weighting: str = "image_frequency",
    ) -> None:
        """
        Args:
            dataset_name: a registered data set with ``thing_classes`` and annotations.
            distributed: gather the predictions of all processes.
            output_dir: if given, ``visdrone_results/<image>.txt`` (the official format, one file per image, best
                detection first) and ``visdrone_metrics.json`` are written there.
            class_weighting: of AP, AP50, ... in the result: ``image_frequency`` (the official tool) or ``plain``. The
                plain mean over classes is reported beside it in either case.

        Raises:
            ConfigError: for an unknown ``class_weighting``.
            DatasetError: if the data set has no annotations.
        """
        if class_weighting not in CLASS_WEIGHTINGS:
            raise ConfigError(
                f"class_weighting={class_weighting!r} is not known. Expected one of {', '.join(CLASS_WEIGHTINGS)}; "
                "'image_frequency' is the official tool's."
            )
        super().__init__(dataset_name, distributed, output_dir)
        self._class_weighting = class_weighting
        self._class_names = list(MetadataCatalog.get(dataset_name).thing_classes)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Compute and log the metric over all images of the data set.

        Returns:
            ``{"visdrone": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "AR500", "AP_plain",
            "AP50_plain", "AP75_plain", "AP-<class>", ...}}`` in per cent; empty on all processes but the main one, and
            if no prediction came.

        Raises:
            ConfigError: if a predicted class does not exist in the data set.
            DatasetError: if a prediction belongs to no image of the data set.
        """
        predictions = self.gather()
        if not predictions:
            return {}
        highest = max((int(p.classes.max()) for p in predictions.values() if len(p.classes)), default=-1)
        if highest >= len(self._class_names):
            raise ConfigError(
                f"The model predicts class {highest}, but '{self._dataset_name}' has classes 0 to "
                f"{len(self._class_names) - 1}. Set the model's NUM_CLASSES to {len(self._class_names)}."
            )
        missing = len(self._records) - len(predictions)
        if missing:
            self._logger.warning("%d of %d images have no prediction; they count.", missing, len(self._records))

        found = {key: predictions.get(key, NOTHING) for key in self._records}
        images = [
            image_boxes(
                record,
                len(self._class_names),
                boxes=_xywh(found[key]),
                scores=found[key].scores,
                classes=found[key].classes,
            )
            for key, record in self._records.items()
        ]
        result = evaluate_visdrone(images, len(self._class_names))
        scores, plain = result.summary(self._class_weighting), result.summary("plain")
        scores |= {f"{key}_plain": plain[key] for key in ("AP", "AP50", "AP75")}
        scores |= {f"AP-{name}": 100.0 * float(ap) for name, ap in zip(self._class_names, result.ap.mean(axis=1))}
        self._log_tables(scores, result)
        if self._output_dir is not None:
            # Result files of the official tool, an empty one for an image without detections, and the scores.
            folder = self._output_dir / RESULT_FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            for key, record in self._records.items():
                with replacing(folder / f"{Path(record['file_name']).stem}.txt") as path:
                    path.write_text("".join(_official_lines(found[key])))
            facts = {"dataset": self._dataset_name, "class_weighting": self._class_weighting}
            content = {**facts, "visdrone": finite_or_none(scores)}
            with replacing(self._output_dir / RESULT_JSON) as path:
                path.write_text(json.dumps(content, indent=1) + "\n")
            self._logger.info("Wrote %d official result files to %s", len(self._records), folder)
        return OrderedDict(visdrone=scores)

    def _log_tables(self, scores: Mapping[str, float], result: VisDroneResult) -> None:
        total = {key: value for key, value in scores.items() if "-" not in key}
        self._logger.info(
            "VisDrone metric of '%s' (class mean: %s; *_plain: every class once):\n%s",
            self._dataset_name,
            self._class_weighting,
            tabulate([total.values()], headers=list(total), tablefmt="pipe", floatfmt=".3f"),
        )
        columns = {
            "AP": result.ap.mean(axis=1),
            "AP50": result.ap[:, 0],
            **{f"AP{size}": result.ap_by_size[i].mean(axis=1) for i, size in enumerate(SIZE_NAMES)},
            "AR500": result.ar[:, :, -1].mean(axis=1),
        }
        rows = [
            [name, int(result.num_objects[k]), int(result.num_images[k]), *(100.0 * v[k] for v in columns.values())]
            for k, name in enumerate(self._class_names)
        ]
        headers = ["class", "objects", "images", *columns]
        self._logger.info("Per class:\n%s", tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f"))


def image_boxes(
    record: Mapping[str, Any], num_classes: int, *, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray
) -> ImageBoxes:
    """Ground truth of a data set dict beside its detections.

    Args:
        record: as :class:`VisDroneEvaluator` describes it.
        num_classes: K.
        boxes: (D, 4) detections, XYWH px of the file's image.
        scores: (D,).
        classes: (D,) integers in [0, K).
    """
    annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
    objects = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS) for a in annotations]
    extra = list(record.get("ignore_regions", []))
    categories = np.array(record.get("ignore_categories", [REGION_CATEGORY] * len(extra)), dtype=np.int64)
    extra_boxes = np.array(extra, dtype=np.float64).reshape(-1, 4)
    of_class = (categories >= 1) & (categories <= num_classes)
    own_classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    return ImageBoxes(
        height=record["height"],
        width=record["width"],
        gt_boxes=np.concatenate([np.array(objects, dtype=np.float64).reshape(-1, 4), extra_boxes[of_class]]),
        gt_classes=np.concatenate([own_classes, categories[of_class] - 1]),
        gt_ignored=np.arange(len(objects) + int(of_class.sum())) >= len(objects),
        regions=extra_boxes[categories == REGION_CATEGORY],
        det_boxes=boxes,
        det_scores=scores,
        det_classes=classes,
    )


def _xywh(prediction: Prediction) -> np.ndarray:
    """(D, 4) px."""
    return np.concatenate([prediction.boxes[:, :2], prediction.boxes[:, 2:] - prediction.boxes[:, :2]], axis=1)


def _official_lines(prediction: Prediction) -> list[str]:
    """Lines ``x,y,w,h,score,category,-1,-1``, best first: the tool cuts to 500 without sorting."""
    order, boxes = np.argsort(-prediction.scores, kind="stable"), _xywh(prediction)
    return [
        "{:.2f},{:.2f},{:.2f},{:.2f},{:.6f},{},-1,-1\n".format(*boxes[i], prediction.scores[i], k + 1)
        for i, k in zip(order, prediction.classes[order])
    ]
