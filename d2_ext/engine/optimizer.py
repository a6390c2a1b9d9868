"""The optimizer of Detectron2, and gradient clipping by the norm of the whole model."""

from __future__ import annotations

from typing import Any

from d2_ext.errors import ConfigError

import detectron2.solver
import torch
from detectron2.config import CfgNode
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``detectron2.solver.build_optimizer``'s optimizer; ``CLIP_TYPE: "full_model"`` is understood too.

    Detectron2's clip types ``value`` and ``norm`` treat each parameter alone. ``full_model`` scales all gradients
    together so that their joint norm (``NORM_TYPE``) is at most ``CLIP_VALUE``, as most papers mean it.

    Raises:
        ConfigError: for an unknown ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in ("value", "norm", "full_model"):
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE!r} is unknown; expected 'value' or 'norm' (each "
            "parameter alone) or 'full_model' (all together)."
        )
    if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
        return detectron2.solver.build_optimizer(cfg, model)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = detectron2.solver.build_optimizer(cfg, model)

    # A hook of the step, not of the backward pass: under mixed precision the gradients are unscaled by then.
    def clip_all(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer
