"""Detectron2's optimizer, AdamW beside it, and gradient clipping by the norm of the whole model."""

from __future__ import annotations

from typing import Any

from d2_ext.errors import ConfigError, did_you_mean

import detectron2.solver
import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

OPTIMIZERS = ("SGD", "AdamW")
CLIP_TYPES = ("value", "norm", "full_model")
SCALES = ("layer_scale_1", "layer_scale_2", "scale")  # last part of the names of factors per channel or level


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER`` describes; beyond Detectron2's, ``AdamW`` and ``full_model`` clipping.

    Detectron2's clip types ``value`` and ``norm`` treat each parameter alone. ``full_model`` scales all gradients
    together so that their joint norm (``NORM_TYPE``) is at most ``CLIP_VALUE``, as most papers mean it.

    Args:
        cfg: reads ``SOLVER.OPTIMIZER``, learning rates, weight decays and ``CLIP_GRADIENTS``.
        model: its parameters are grouped by weight decay and learning rate as Detectron2 does.

    Raises:
        ConfigError: for an unknown ``SOLVER.OPTIMIZER`` or ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    for key, value, choices in (
        ("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, OPTIMIZERS),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, CLIP_TYPES),
    ):
        if value not in choices:
            raise ConfigError(f"{key} {value!r} is unknown. {did_you_mean(value, choices)}")
    clips_whole_model = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    if clips_whole_model:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    if cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = detectron2.solver.build_optimizer(cfg, model)
    else:
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            overrides={name: {"weight_decay": cfg.SOLVER.WEIGHT_DECAY_SCALE} for name in SCALES},
        )
        adamw = torch.optim.AdamW(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
        optimizer = maybe_add_gradient_clipping(cfg, adamw)
    if clips_whole_model:
        # A hook of the step, not of the backward pass: under mixed precision the gradients are unscaled by then.
        def clip_joint_norm(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_joint_norm)
    return optimizer
