"""Detectors as files for other runtimes: ONNX, ``torch.export`` and OpenVINO. See docs/export.md."""

from d2_ext.export.compare import BOX_TOLERANCE, SCORE_TOLERANCE, Comparison, compare
from d2_ext.export.detector import ExportableDetector
from d2_ext.export.formats import convert_onnx, export_file
from d2_ext.export.metadata import describe
from d2_ext.export.runtimes import SUFFIXES, Detections, eager_runtime, load_runtime, need, read_metadata

__all__ = [
    "BOX_TOLERANCE",
    "SCORE_TOLERANCE",
    "SUFFIXES",
    "Comparison",
    "Detections",
    "ExportableDetector",
    "compare",
    "convert_onnx",
    "describe",
    "eager_runtime",
    "export_file",
    "load_runtime",
    "need",
    "read_metadata",
]
