"""Whole models."""

from detectron2._missing import refuse
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNet

__all__ = ["META_ARCH_REGISTRY", "DenseDetector", "RetinaNet", "build_model"]

_SEGMENTATION = "PanopticFPN SEM_SEG_HEADS_REGISTRY SemanticSegmentor build_sem_seg_head"
__getattr__ = refuse(__name__, f"FCOS GeneralizedRCNN ProposalNetwork {_SEGMENTATION}")
