"""Inference on pictures, folders and videos: batched, tiled, written to files, handed over to other tools."""

from d2_ext.inference.predictor import BatchPredictor, read_picture
from d2_ext.inference.results import to_coco_results, to_fiftyone, to_supervision
from d2_ext.inference.tiled import TiledDetector, tiled_if_set, without_resizing

__all__ = [
    "BatchPredictor",
    "TiledDetector",
    "read_picture",
    "tiled_if_set",
    "to_coco_results",
    "to_fiftyone",
    "to_supervision",
    "without_resizing",
]
