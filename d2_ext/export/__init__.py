"""Detectors as files for other runtimes: ONNX, ``torch.export`` and OpenVINO. See docs/export.md."""

from d2_ext.export.compare import BOX_TOLERANCE, SCORE_TOLERANCE, Comparison, check_same, compare
from d2_ext.export.detector import ExportableDetector
from d2_ext.export.formats import convert_onnx, export_file
from d2_ext.export.metadata import describe
from d2_ext.export.runtimes import SUFFIXES, Detections, eager_runtime, load_runtime, need, read_metadata
from d2_ext.export.sparse_towers import gathered_maps
from d2_ext.modeling.heads.sparse import dense_maps

__all__ = [
    "BOX_TOLERANCE",
    "SCORE_TOLERANCE",
    "SUFFIXES",
    "Comparison",
    "Detections",
    "ExportableDetector",
    "check_same",
    "compare",
    "convert_onnx",
    "dense_maps",
    "describe",
    "eager_runtime",
    "export_file",
    "gathered_maps",
    "load_runtime",
    "need",
    "read_metadata",
]
