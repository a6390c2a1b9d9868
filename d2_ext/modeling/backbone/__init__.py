"""Backbones; importing this package registers them."""

from d2_ext.modeling.backbone import fcos_resnet_fpn, resnet_fpn
