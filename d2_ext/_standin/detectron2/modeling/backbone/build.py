"""Registry of backbones."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.utils.registry import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Functions or classes that make a Backbone, called with (cfg, ShapeSpec of the input)."


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """The registered backbone named by ``cfg.MODEL.BACKBONE.NAME``.

    Args:
        cfg: the config.
        input_shape: of the pictures; by default they have as many channels as ``cfg.MODEL.PIXEL_MEAN``.
    """
    name = cfg.MODEL.BACKBONE.NAME
    pictures = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)) if input_shape is None else input_shape
    backbone = BACKBONE_REGISTRY.get(name)(cfg, pictures)
    assert isinstance(backbone, Backbone), f"'{name}' made a {type(backbone).__name__}, which is not a Backbone."
    return backbone
