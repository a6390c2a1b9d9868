"""Our detectors in SAHI (https://github.com/obss/sahi): its slicing, merging and evaluation around a BatchPredictor.

SAHI has a class for Detectron2, which is not of use here: it does not know the config keys of extensions, computes one
slice at a time, and hands an image of the other channel order to models of ``INPUT.FORMAT: RGB``.

Imported on its own, since SAHI is optional::

    from sahi.predict import get_sliced_prediction
    from d2_ext.inference.sahi_model import SahiDetector
    result = get_sliced_prediction("large.jpg", SahiDetector(predictor), slice_height=1024, slice_width=1024)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2_ext.inference.predictor import BatchPredictor
from d2_ext.inference.results import class_name

import numpy as np
from detectron2.structures import Instances
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction

Numbers = Sequence[float] | Sequence[Sequence[float]] | None


class SahiDetector(DetectionModel):
    """A ``DetectionModel`` of SAHI.

    Args:
        predictor: without tiles of its own (``TEST.TILE.SIZE`` 0).
        confidence_threshold: lowest score, 0 to 1.
        options: further arguments of ``DetectionModel``, for example ``category_remapping``.
    """

    def __init__(self, predictor: BatchPredictor, *, confidence_threshold: float = 0.3, **options: Any) -> None:
        names = {str(i): class_name(predictor.metadata, i) for i in range(predictor.num_classes)}
        super().__init__(
            model=predictor,
            confidence_threshold=confidence_threshold,
            category_mapping=names,
            device=predictor.cfg.MODEL.DEVICE,
            **options,
        )

    def set_model(self, model: BatchPredictor, **_: Any) -> None:
        """Take the predictor."""
        self.model = model

    def load_model(self) -> None:
        """Nothing is left to load: the predictor has its weights."""

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect on one slice, (H, W, 3) uint8 RGB."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Detect on slices, (H, W, 3) uint8 RGB, ``predictor.batch_size`` at a time."""
        self._original_predictions = self.model([np.ascontiguousarray(image[:, :, ::-1]) for image in images])

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Numbers = None, full_shape_list: Numbers = None
    ) -> None:
        """Called by SAHI, with shift (x, y) and shape (height, width) of the whole image: one per slice, or one."""
        found: Sequence[Instances] = self._original_predictions
        shifts, shapes = _one_each(shift_amount_list or [0, 0], len(found)), _one_each(full_shape_list, len(found))
        self._object_prediction_list_per_image = [
            self._object_predictions(instances, shift, shape) for instances, shift, shape in zip(found, shifts, shapes)
        ]

    def _object_predictions(
        self, instances: Instances, shift: Sequence[float], shape: Sequence[float] | None
    ) -> list[ObjectPrediction]:
        names = self.category_mapping
        assert names is not None, "SAHI keeps the names that the constructor gives it"
        kept = instances[instances.scores >= self.confidence_threshold]
        rows = zip(kept.pred_boxes.tensor.tolist(), kept.scores.tolist(), kept.pred_classes.tolist())
        return [
            ObjectPrediction(
                bbox=box,
                score=score,
                category_id=number,
                category_name=names[str(number)],
                shift_amount=list(shift),
                full_shape=None if shape is None else list(shape),
            )
            for box, score, number in rows
        ]


def _one_each(values: Numbers, count: int) -> Sequence[Any]:
    """SAHI gives a list of numbers, a list of such lists, or nothing."""
    if values is None:
        return [None] * count
    return values if isinstance(values[0], Sequence) else [values] * count
