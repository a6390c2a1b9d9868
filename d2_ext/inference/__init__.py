"""Inference on pictures, folders and videos: batched, tiled, written to files, handed over to other tools."""

from d2_ext.inference.predictor import BatchPredictor, read_picture

__all__ = ["BatchPredictor", "read_picture"]
