"""Registry of detectors."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import _log_api_usage
from detectron2.utils.registry import Registry
from torch import nn

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Whole models, called with (cfg)."


def build_model(cfg: CfgNode) -> nn.Module:
    """The registered model named by ``cfg.MODEL.META_ARCHITECTURE``, on ``cfg.MODEL.DEVICE``, with random weights."""
    name = cfg.MODEL.META_ARCHITECTURE
    build, device = META_ARCH_REGISTRY.get(name), torch.device(cfg.MODEL.DEVICE)
    _log_api_usage(f"modeling.meta_arch.{name}")
    return build(cfg).to(device)
