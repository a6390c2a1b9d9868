"""The registry of whole models."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "What makes a whole model; called with (cfg)."


def build_model(cfg: CfgNode) -> nn.Module:
    """Build what ``MODEL.META_ARCHITECTURE`` says on ``MODEL.DEVICE``, with random weights; KeyError if unknown."""
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(cfg.MODEL.DEVICE)
