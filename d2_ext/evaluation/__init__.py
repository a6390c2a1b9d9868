"""Evaluation: COCO and official VisDrone metrics."""

from d2_ext.evaluation.build import build_evaluator
from d2_ext.evaluation.visdrone import VisDroneEvaluator

__all__ = ["VisDroneEvaluator", "build_evaluator"]
