"""Evaluation: a model over a data set, COCO's metrics, and what is done with results."""

from detectron2._missing import refuse

from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from .testing import print_csv_format, verify_results

_FOR_OTHER_DATA = (
    "COCOPanopticEvaluator CityscapesInstanceEvaluator CityscapesSemSegEvaluator LVISEvaluator "
    "PascalVOCDetectionEvaluator RotatedCOCOEvaluator SemSegEvaluator"
)
__getattr__ = refuse(__name__, _FOR_OTHER_DATA)
