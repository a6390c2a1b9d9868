"""A trained run as something that detects on one image and shows what it found."""

from __future__ import annotations

from pathlib import Path

from d2_ext.inference import BatchPredictor
from d2_ext.inference.loading import detector_config
from d2_ext.inference.results import class_name
from d2_ext.visualization import draw_detections, draw_masks

import numpy as np
from detectron2.structures import Instances


class Detector:
    """A checkpoint with the config beside it. Its data sets need not be there.

    Args:
        weights: a ``.pth`` file in a run folder.
        device: e.g. ``"cpu"``; the config's if not given.

    Attributes:
        has_masks: whether its head is sparse.

    Raises:
        ConfigError: if the run's config cannot be used.
        CheckpointError: if the weights cannot be read or do not fill the model.
    """

    def __init__(self, weights: Path, device: str | None = None) -> None:
        overrides = ["MODEL.DEVICE", device] if device else []
        self._predictor = BatchPredictor(detector_config(str(weights), overrides=overrides))
        self.has_masks = hasattr(self._predictor.model, "activation_masks")

    def detect(self, image: np.ndarray, score_threshold: float) -> Instances:
        """Detect on a (H, W, 3) uint8 BGR image; ``pred_boxes`` in px of it, on the CPU, from a score on."""
        (found,) = self._predictor([image])
        return found[found.scores >= score_threshold]

    def draw(self, image: np.ndarray, found: Instances) -> np.ndarray:
        """The image with boxes, classes and scores, uint8 BGR."""
        return draw_detections(image, found, self._predictor.metadata)

    def draw_masks(self, image: np.ndarray) -> np.ndarray:
        """Where each branch of each level of a sparse head computes, uint8 BGR."""
        return draw_masks(image, self._predictor.activation_masks([image])[0])

    def class_name(self, index: int) -> str:
        """Name of a class; its number if it has none."""
        return class_name(self._predictor.metadata, index)
