"""Evaluation: COCO and official VisDrone metrics, and the recall of sparse masks."""

from d2_ext.evaluation.build import build_evaluator
from d2_ext.evaluation.mask_recall import MaskRecallEvaluator
from d2_ext.evaluation.visdrone import VisDroneEvaluator

__all__ = ["MaskRecallEvaluator", "VisDroneEvaluator", "build_evaluator"]
