"""Evaluator of CrowdHuman's metric; the rules are in :mod:`d2_ext.evaluation.crowdhuman_metric`."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError
from d2_ext.evaluation.crowdhuman_metric import CrowdImage, evaluate_crowdhuman

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from tabulate import tabulate

__all__ = ["CrowdHumanEvaluator"]

RESULT_JSON = "crowdhuman_metrics.json"
DETECTIONS_JSON = "coco_instances_results.json"


class CrowdHumanEvaluator(DatasetEvaluator):
    """AP50, log-average miss rate and recall of whole bodies, with ignore regions.

    The data set's dicts carry ``annotations`` and, as an option, ``ignore_regions`` (XYWH boxes). Classes play no
    role: every detection is taken for a person. Only the main process computes.

    Args:
        dataset_name: a registered data set with annotations.
        distributed: gather the predictions of all processes.
        output_dir: if given, ``crowdhuman_metrics.json`` and the detections as COCO results are written there.

    Raises:
        DatasetError: if the data set has no annotations.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None) -> None:
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = Path(output_dir) if output_dir else None
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
        if not any("annotations" in record for record in self._records.values()):
            raise DatasetError(f"Data set '{dataset_name}' has no annotations, so nothing can be evaluated on it.")
        self._predictions: list[tuple[Any, np.ndarray, np.ndarray]] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the detections of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` (``pred_boxes`` XYXY px of the file's image, ``scores``).
        """
        for one_input, output in zip(inputs, outputs, strict=True):
            found: Instances = output["instances"]
            boxes = found.pred_boxes.tensor.detach().cpu().numpy().astype(np.float64)
            scores = found.scores.detach().cpu().numpy().astype(np.float64)
            self._predictions.append((one_input["image_id"], boxes, scores))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Compute and log the metric over all images of the data set.

        Returns:
            ``{"crowdhuman": {"AP50", "mMR", "recall"}}`` in per cent; empty on all processes but the main one, and if
            no prediction came.

        Raises:
            DatasetError: if a prediction belongs to no image of the data set.
        """
        predictions = self._gather()
        if not predictions:
            return {}
        strangers = [key for key in predictions if key not in self._records]
        if strangers:
            raise DatasetError(
                f"Predictions for image_id {strangers[0]!r} (and {len(strangers) - 1} more) belong to no image of "
                f"'{self._dataset_name}'. Evaluate with the loader of the same data set."
            )
        scores = evaluate_crowdhuman([self._image(record, predictions) for record in self._records.values()])
        self._logger.info(
            "CrowdHuman metric of '%s' (mMR: lower is better):\n%s",
            self._dataset_name,
            tabulate([scores.values()], headers=list(scores), tablefmt="pipe", floatfmt=".3f"),
        )
        if self._output_dir is not None:
            finite = {key: None if math.isnan(value) else value for key, value in scores.items()}
            self._output_dir.mkdir(parents=True, exist_ok=True)
            (self._output_dir / RESULT_JSON).write_text(json.dumps(finite, indent=1) + "\n")
            (self._output_dir / DETECTIONS_JSON).write_text(json.dumps(self._coco_results(predictions)))
        return OrderedDict(crowdhuman=scores)

    def _gather(self) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
        """Predictions of all processes by image id on the main process, nothing on the others."""
        gathered = [self._predictions]
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(self._predictions, dst=0)
            if not comm.is_main_process():
                return {}
        predictions = {key: (boxes, scores) for key, boxes, scores in itertools.chain.from_iterable(gathered)}
        if not predictions:
            self._logger.warning("CrowdHumanEvaluator got no predictions for '%s'.", self._dataset_name)
        return predictions

    def _coco_results(self, predictions: Mapping[Any, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
        """Rows as ``COCOEvaluator`` writes them, each of the data set's first class; the boxes are not clipped."""
        own_ids = MetadataCatalog.get(self._dataset_name).get("thing_dataset_id_to_contiguous_id", {})
        category = next((own for own, contiguous in own_ids.items() if contiguous == 0), 0)
        rows = []
        for key, (boxes, scores) in predictions.items():
            xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
            rows += [
                {"image_id": key, "category_id": category, "bbox": box, "score": score}
                for box, score in zip(xywh.tolist(), scores.tolist())
            ]
        return rows

    def _image(self, record: Mapping[str, Any], predictions: Mapping[Any, tuple[np.ndarray, np.ndarray]]) -> CrowdImage:
        """Ground truth of a data set dict beside its detections, all clipped to the image."""
        size = (record["width"], record["height"])
        annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
        crowds = [a for a in record.get("annotations", []) if a.get("iscrowd", 0)]
        regions = [[x, y, x + w, y + h] for x, y, w, h in record.get("ignore_regions", [])]
        boxes, scores = predictions.get(record["image_id"], (np.zeros((0, 4)), np.zeros(0)))
        return CrowdImage(
            det_boxes=_clip(boxes, size),
            det_scores=scores,
            gt_boxes=_clip(_xyxy(annotations), size),
            regions=_clip(np.concatenate([_xyxy(crowds), np.array(regions, dtype=np.float64).reshape(-1, 4)]), size),
        )


def _xyxy(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    limit = np.array([size[0], size[1], size[0], size[1]], dtype=np.float64)
    return np.minimum(boxes, limit).clip(min=0)
