"""Backbones; importing this package registers them."""

from d2_ext.modeling.backbone import resnet_fpn
