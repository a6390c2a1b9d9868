"""Convolutions, norms, suppression and losses that detectors are made of."""

from detectron2._missing import refuse
from detectron2.layers.batch_norm import CycleBatchNormList, FrozenBatchNorm2d, get_norm
from detectron2.layers.blocks import CNNBlockBase
from detectron2.layers.deform_conv import DeformConv, ModulatedDeformConv
from detectron2.layers.losses import ciou_loss, diou_loss
from detectron2.layers.nms import batched_nms, nms
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

__all__ = [
    "BatchNorm2d", "CNNBlockBase", "Conv2d", "ConvTranspose2d", "CycleBatchNormList", "DeformConv", "FrozenBatchNorm2d",
    "Linear", "ModulatedDeformConv", "ShapeSpec", "batched_nms", "cat", "ciou_loss",
    "cross_entropy", "diou_loss", "get_norm", "interpolate", "move_device_like", "nms", "nonzero_tuple",
    "shapes_to_tensor",
]  # fmt: skip

_MISSING = "ASPP DepthwiseSeparableConv2d NaiveSyncBatchNorm ROIAlign ROIAlignRotated batched_nms_rotated "
_MISSING += "empty_input_loss_func_wrapper nms_rotated paste_masks_in_image roi_align roi_align_rotated"
__getattr__ = refuse(__name__, _MISSING)
