"""Whole detectors."""

from detectron2._missing import refuse
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet

__all__ = ["FCOS", "META_ARCH_REGISTRY", "DenseDetector", "RetinaNet", "build_model"]

__getattr__ = refuse(
    __name__,
    [
        *["GeneralizedRCNN", "PanopticFPN", "ProposalNetwork", "SEM_SEG_HEADS_REGISTRY", "SemanticSegmentor"],
        "build_sem_seg_head",
    ],
)
