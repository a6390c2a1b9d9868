"""A trained run as something that detects on one picture and shows what it found."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.demo.checkpoints import CONFIG_NAME
from d2_ext.engine import build_config
from d2_ext.visualization import draw_detections, draw_masks
from d2_ext.yaml_files import read_yaml

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from torch import nn


class Detector:
    """A checkpoint with the config beside it.

    Args:
        weights: a ``.pth`` file in a run folder.
        device: e.g. ``"cpu"``; the config's if not given.

    Attributes:
        model: in evaluation mode.
        has_masks: whether its head is sparse.

    Raises:
        ConfigError: if the run's config cannot be used.
        CheckpointError: if the weights cannot be read.
    """

    def __init__(self, weights: Path, device: str | None = None) -> None:
        config_file = weights.parent / CONFIG_NAME
        # The model does not need its data sets, and they need not be here.
        options = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.WEIGHTS", ""]
        options += ["MODEL.DEVICE", device] if device else []
        self.cfg = build_config(argparse.Namespace(config_file=str(config_file), opts=options))
        self.model, self._predict = _load(self.cfg, weights)
        self.metadata = _class_metadata(config_file)
        self.has_masks = hasattr(self.model, "activation_masks")

    def detect(self, picture: np.ndarray, score_threshold: float) -> Instances:
        """Detect on a (H, W, 3) uint8 BGR picture; ``pred_boxes`` in px of it, on the CPU, from a score on."""
        found = self._predict(picture)
        return found[found.scores >= score_threshold]

    def draw(self, picture: np.ndarray, found: Instances) -> np.ndarray:
        """The picture with boxes, classes and scores, uint8 BGR."""
        return draw_detections(picture, found, self.metadata)

    def draw_masks(self, picture: np.ndarray) -> np.ndarray:
        """Where each branch of each level of a sparse head computes, uint8 BGR."""
        resize = T.ResizeShortestEdge([self.cfg.INPUT.MIN_SIZE_TEST] * 2, self.cfg.INPUT.MAX_SIZE_TEST)
        ordered = picture[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else picture
        resized = resize.get_transform(ordered).apply_image(np.ascontiguousarray(ordered))
        image = torch.from_numpy(resized.copy()).permute(2, 0, 1)
        return draw_masks(picture, self.model.activation_masks([{"image": image}])[0])

    def class_name(self, index: int) -> str:
        """Name of a class; its number where the run does not say."""
        names = self.metadata.get("thing_classes", [])
        return str(names[index]) if index < len(names) else f"class {index}"


def _load(cfg: CfgNode, weights: Path) -> tuple[nn.Module, Callable[[np.ndarray], Instances]]:
    """The model with its weights, and the function that detects on a BGR picture: the one place that chooses how."""
    predictor = DefaultPredictor(cfg)
    SafeCheckpointer(predictor.model).load(str(weights))  # DefaultPredictor's own reader would unpickle anything
    return predictor.model, lambda picture: predictor(picture)["instances"].to("cpu")


def _class_metadata(config_file: Path) -> Metadata:
    """Names and colours of the run's first test set, if it is registered; nothing is loaded for it."""
    content: dict[str, Any] = read_yaml(config_file)
    names = content.get("DATASETS", {}).get("TEST") or []
    known = [name for name in names if name in DatasetCatalog]
    return MetadataCatalog.get(known[0]) if known else Metadata(name="")
