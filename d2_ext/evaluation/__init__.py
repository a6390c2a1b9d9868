"""Evaluation: COCO and official VisDrone metrics, the recall of sparse masks, and skipped tiles."""

from d2_ext.evaluation.build import build_evaluator
from d2_ext.evaluation.mask_recall import MaskRecallEvaluator
from d2_ext.evaluation.skipped_tiles import SkippedTilesEvaluator
from d2_ext.evaluation.visdrone import VisDroneEvaluator

__all__ = ["MaskRecallEvaluator", "SkippedTilesEvaluator", "VisDroneEvaluator", "build_evaluator"]
