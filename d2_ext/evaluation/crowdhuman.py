"""Evaluator of CrowdHuman's metric; the rules are in :mod:`d2_ext.evaluation.crowdhuman_metric`."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from d2_ext.evaluation.crowdhuman_metric import CrowdImage, evaluate_crowdhuman
from d2_ext.evaluation.predictions import NOTHING, Prediction, RecordEvaluator, finite_or_none
from d2_ext.files import replacing

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from tabulate import tabulate

__all__ = ["CrowdHumanEvaluator"]

RESULT_JSON = "crowdhuman_metrics.json"
DETECTIONS_JSON = "coco_instances_results.json"


class CrowdHumanEvaluator(RecordEvaluator):
    """AP50, log-average miss rate and recall of whole bodies, with ignore regions.

    The data set's dicts carry ``annotations`` and, as an option, ``ignore_regions`` (XYWH boxes). Classes play no
    role: every detection is taken for a person. With ``output_dir``, ``crowdhuman_metrics.json`` and the detections as
    COCO results are written there.
    """

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Compute and log the metric over all images of the data set.

        Returns:
            ``{"crowdhuman": {"AP50", "mMR", "recall"}}`` in per cent; empty on all processes but the main one, and if
            no prediction came.

        Raises:
            DatasetError: if a prediction belongs to no image of the data set.
        """
        predictions = self.gather()
        if not predictions:
            return {}
        scores = evaluate_crowdhuman([self._image(record, predictions) for record in self._records.values()])
        self._logger.info(
            "CrowdHuman metric of '%s' (mMR: lower is better):\n%s",
            self._dataset_name,
            tabulate([scores.values()], headers=list(scores), tablefmt="pipe", floatfmt=".3f"),
        )
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            with replacing(self._output_dir / RESULT_JSON) as path:
                path.write_text(json.dumps(finite_or_none(scores), indent=1) + "\n")
            # Rows as COCOEvaluator writes them, each of the data set's first class; the boxes are not clipped.
            own_ids = MetadataCatalog.get(self._dataset_name).get("thing_dataset_id_to_contiguous_id", {})
            category = next((own for own, contiguous in own_ids.items() if contiguous == 0), 0)
            rows = []
            for key, found in predictions.items():
                boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
                rows += [
                    {"image_id": key, "category_id": category, "bbox": box, "score": score}
                    for box, score in zip(boxes.tolist(), found.scores.tolist())
                ]
            with replacing(self._output_dir / DETECTIONS_JSON) as path:
                path.write_text(json.dumps(rows))
        return OrderedDict(crowdhuman=scores)

    def _image(self, record: Mapping[str, Any], predictions: Mapping[Any, Prediction]) -> CrowdImage:
        """Ground truth of a data set dict beside its detections, all clipped to the image."""
        size = (record["width"], record["height"])
        annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
        crowds = [a for a in record.get("annotations", []) if a.get("iscrowd", 0)]
        regions = [[x, y, x + w, y + h] for x, y, w, h in record.get("ignore_regions", [])]
        found = predictions.get(record["image_id"], NOTHING)
        return CrowdImage(
            det_boxes=_clip(found.boxes, size),
            det_scores=found.scores,
            gt_boxes=_clip(_xyxy(annotations), size),
            regions=_clip(np.concatenate([_xyxy(crowds), np.array(regions, dtype=np.float64).reshape(-1, 4)]), size),
        )


def _xyxy(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    limit = np.array([size[0], size[1], size[0], size[1]], dtype=np.float64)
    return np.minimum(boxes, limit).clip(min=0)
