"""Inference on images, folders and videos: batched, tiled, written to files, handed over to other tools."""

from d2_ext.images import read_image
from d2_ext.inference.predictor import BatchPredictor
from d2_ext.inference.results import to_coco_results, to_fiftyone, to_supervision
from d2_ext.inference.tiled import TiledDetector, tiled_if_set, without_resizing

__all__ = [
    "BatchPredictor",
    "TiledDetector",
    "read_image",
    "tiled_if_set",
    "to_coco_results",
    "to_fiftyone",
    "to_supervision",
    "without_resizing",
]
