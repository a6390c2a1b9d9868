"""The registry of backbones."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.utils.registry import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "What makes a Backbone; called with (cfg, ShapeSpec of the input)."


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build what ``MODEL.BACKBONE.NAME`` says (KeyError for an unknown name, AssertionError for no ``Backbone``).

    By default the images have as many channels as ``MODEL.PIXEL_MEAN`` has values.
    """
    name, channels = cfg.MODEL.BACKBONE.NAME, len(cfg.MODEL.PIXEL_MEAN)
    built = BACKBONE_REGISTRY.get(name)(cfg, input_shape or ShapeSpec(channels=channels))
    assert isinstance(built, Backbone), f"MODEL.BACKBONE.NAME {name} made a {type(built).__name__}, not a Backbone"
    return built
