"""Models: backbones, anchors and dense detectors, each built from a config by the registry of its kind."""

from detectron2._missing import refuse
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from detectron2.modeling.backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    build_backbone,
    build_resnet_backbone,
    make_stage,
)
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, RetinaNet, build_model
from detectron2.modeling.postprocessing import detector_postprocess

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY", "BACKBONE_REGISTRY", "FPN", "META_ARCH_REGISTRY", "Backbone", "ResNet",
    "ResNetBlockBase", "RetinaNet", "build_anchor_generator", "build_backbone", "build_model",
    "build_resnet_backbone", "detector_postprocess", "make_stage",
]  # fmt: skip

_MISSING = """
BaseKeypointRCNNHead BaseMaskRCNNHead DatasetMapperTTA FCOS FastRCNNOutputLayers GeneralizedRCNN GeneralizedRCNNWithTTA
MMDetBackbone MMDetDetector MViT PROPOSAL_GENERATOR_REGISTRY PanopticFPN ProposalNetwork ROIHeads ROI_BOX_HEAD_REGISTRY
ROI_HEADS_REGISTRY ROI_KEYPOINT_HEAD_REGISTRY ROI_MASK_HEAD_REGISTRY RPN_HEAD_REGISTRY SEM_SEG_HEADS_REGISTRY
SemanticSegmentor SimpleFeaturePyramid StandardROIHeads SwinTransformer ViT build_box_head build_keypoint_head
build_mask_head build_proposal_generator build_roi_heads build_rpn_head build_sem_seg_head get_vit_lr_decay_rate
"""
__getattr__ = refuse(__name__, _MISSING)
