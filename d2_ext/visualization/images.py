"""Images of detections beside the ground truth, for the end of a run."""

from __future__ import annotations

import logging
from pathlib import Path

from d2_ext.images import read_image, write_image
from d2_ext.visualization.masks import draw_masks

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, Metadata, MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import nn

logger = logging.getLogger(__name__)
MIN_DRAWN_SIZE = 640  # px; smaller images are enlarged, so that labels of small objects can be read


def draw_detections(image: np.ndarray, instances: Instances, metadata: Metadata) -> np.ndarray:
    """Draw boxes, classes and scores.

    Args:
        image: (H, W, 3) uint8, BGR.
        instances: on the CPU, with ``pred_boxes`` (XYXY px of the image), ``scores``, ``pred_classes``.
        metadata: names and colors of the classes.

    Returns:
        uint8 BGR, the image's size times a scale that makes its longer side at least 640 px.
    """
    return make_visualizer(image, metadata).draw_instance_predictions(instances).get_image()[:, :, ::-1]


def write_images(cfg: CfgNode, model: nn.Module, dataset_name: str, folder: str, *, count: int) -> list[str]:
    """Draw images of a data set, spread evenly over it: ground truth and detections, and masks if the model has any.

    Args:
        cfg: its ``TEST.PICTURE_SCORE_THRESH`` is the score from which a detection is drawn.
        model: a detector; put back into its mode afterwards.
        dataset_name: a registered data set.
        folder: made if it is not there; ``<stem>_detections.jpg`` and ``<stem>_masks.jpg`` are written to it.
        count: images to draw; all if there are fewer.

    Returns:
        The paths written.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    mapper = DatasetMapper(cfg, is_train=False)
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    with inference_context(model), torch.no_grad():
        for index in chosen:
            record = records[index]
            image, inputs = read_image(record["file_name"]), mapper(record)
            found = model([inputs])[0]["instances"].to("cpu")
            found = found[found.scores >= cfg.TEST.PICTURE_SCORE_THRESH]
            truth = make_visualizer(image, metadata).draw_dataset_dict(record).get_image()[:, :, ::-1]
            drawn = {"detections": np.hstack([truth, draw_detections(image, found, metadata)])}
            if hasattr(model, "activation_masks"):
                drawn["masks"] = draw_masks(image, model.activation_masks([inputs])[0])
            for suffix, panel in drawn.items():
                path = f"{Path(folder) / Path(record['file_name']).stem}_{suffix}.jpg"
                write_image(path, panel)
                written.append(path)
    logger.info("Wrote %d images of %s to %s", len(written), dataset_name, folder)
    return written


def make_visualizer(image: np.ndarray, metadata: Metadata) -> Visualizer:
    """A canvas over a (H, W, 3) BGR image; its longer side becomes 640 px at least."""
    scale = max(1.0, MIN_DRAWN_SIZE / max(image.shape[:2]))
    mode = ColorMode.SEGMENTATION if metadata.get("thing_colors") else ColorMode.IMAGE
    names = metadata.get("thing_classes", None)
    if names and any("$" in name for name in names):  # matplotlib takes what stands between two dollars for formulas
        plain = [name.replace("$", r"\$") for name in names]
        metadata = Metadata(**{**metadata.as_dict(), "thing_classes": plain})
    return Visualizer(image[:, :, ::-1], metadata, scale=scale, instance_mode=mode)
