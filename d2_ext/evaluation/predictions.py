"""What our evaluators share: detections kept in the file's frame, gathered, and compared with the data set."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

__all__ = ["NOTHING", "Prediction", "RecordEvaluator", "finite_or_none"]


@dataclass(frozen=True)
class Prediction:
    """Detections of one image: boxes (D, 4) XYXY px of the file's image, scores (D,), classes (D,)."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


NOTHING = Prediction(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


class RecordEvaluator(DatasetEvaluator):
    """Collects detections and hands them, image by image, to a metric of a subclass. Only the main process computes.

    Args:
        dataset_name: a registered data set with annotations.
        distributed: gather the predictions of all processes.
        output_dir: where results are written; nowhere if not given.

    Raises:
        DatasetError: if the data set has no annotations.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None) -> None:
        self._logger = logging.getLogger(type(self).__module__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = Path(output_dir) if output_dir else None
        self._records: dict[Any, dict[str, Any]] = {r["image_id"]: r for r in DatasetCatalog.get(dataset_name)}
        if not any("annotations" in record for record in self._records.values()):
            raise DatasetError(f"Data set '{dataset_name}' has no annotations, so nothing can be evaluated on it.")
        self._predictions: list[tuple[Any, Prediction]] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the detections of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` (``pred_boxes`` XYXY px of the file's image, ``scores``, and
                ``pred_classes`` where the metric asks for classes).
        """
        for one_input, output in zip(inputs, outputs, strict=True):
            found = output["instances"]
            classes = found.pred_classes.cpu().numpy() if found.has("pred_classes") else np.zeros(len(found))
            prediction = Prediction(
                found.pred_boxes.tensor.detach().cpu().numpy().astype(np.float64),
                found.scores.detach().cpu().numpy().astype(np.float64),
                classes.astype(np.int64),
            )
            self._predictions.append((one_input["image_id"], prediction))

    def gather(self) -> dict[Any, Prediction]:
        """Predictions of all processes by image id on the main process, nothing on the others.

        Raises:
            DatasetError: if a prediction belongs to no image of the data set.
        """
        gathered = [self._predictions]
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(self._predictions, dst=0)
            if not comm.is_main_process():
                return {}
        predictions: dict[Any, Prediction] = dict(itertools.chain.from_iterable(gathered))
        if not predictions:
            self._logger.warning("%s got no predictions for '%s'.", type(self).__name__, self._dataset_name)
        strangers = [key for key in predictions if key not in self._records]
        if strangers:
            raise DatasetError(
                f"Predictions for image_id {strangers[0]!r} (and {len(strangers) - 1} more) belong to no image of "
                f"'{self._dataset_name}'. Evaluate with the loader of the same data set."
            )
        return predictions


def finite_or_none(scores: Mapping[str, float]) -> dict[str, float | None]:
    """The figures for a json: null for what is not a number."""
    return {key: None if math.isnan(value) else value for key, value in scores.items()}
