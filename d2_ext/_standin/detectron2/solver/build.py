"""The optimizer of a model and the schedule of its learning rates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2._missing import refuse
from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

logger = logging.getLogger(__name__)

# the first is the base of batch norms of any dimension, synchronized ones, and instance norms
_NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)

__getattr__ = refuse(__name__, "GradientClipType")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Make the SGD of ``cfg.SOLVER`` for the parameters of a model that learn; it clips gradients if asked to."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,  # also where PyTorch would not choose it by itself, so that results are the same everywhere
    )


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer]
) -> torch.optim.Optimizer | type[torch.optim.Optimizer]:
    """Let an optimizer clip gradients before its steps if ``SOLVER.CLIP_GRADIENTS.ENABLED``.

    Each parameter is clipped by itself: ``CLIP_TYPE`` "value" limits the elements of its gradient to ± ``CLIP_VALUE``,
    "norm" its norm of order ``NORM_TYPE`` (ValueError for others). An object is changed and returned; of a class, a
    subclass is returned.
    """
    options = cfg.SOLVER.CLIP_GRADIENTS
    if not options.ENABLED:
        return optimizer
    value, order, by_norm = options.CLIP_VALUE, options.NORM_TYPE, options.CLIP_TYPE == "norm"
    if options.CLIP_TYPE not in ("value", "norm"):
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {options.CLIP_TYPE!r}: 'value' or 'norm' was expected.")
    kind: Any = optimizer if isinstance(optimizer, type) else type(optimizer)

    class WithGradientClip(kind):
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            for parameters in (group["params"] for group in self.param_groups):
                if by_norm:
                    for parameter in parameters:
                        clip_grad_norm_(parameter, value, order)
                else:
                    clip_grad_value_(parameters, value)
            return super().step(closure)

    WithGradientClip.__name__ = WithGradientClip.__qualname__ = f"{kind.__name__}WithGradientClip"
    if isinstance(optimizer, type):
        return WithGradientClip
    optimizer.__class__ = WithGradientClip
    return optimizer


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Sort the parameters of a model that learn into as few groups of equal options as possible.

    The groups are in the order of the first of their parameters, which are in the order of the model's modules.

    Args:
        base_lr, weight_decay: of all; None leaves it to the optimizer, as with the other options.
        weight_decay_norm: that of the parameters of norm layers.
        bias_lr_factor: factor of the learning rate of every parameter called "bias".
        weight_decay_bias: weight decay of every parameter called "bias", those of norm layers included.
        lr_factor_func: factor of the learning rate by the full name of a parameter, such as "head.conv.weight".
        overrides: options by the last part of a parameter's name, such as ``{"weight": {"lr": 0.1}}``; they win.

    Raises:
        ValueError: for a factor without ``base_lr``, or biases that have options here and in ``overrides``.
    """
    base = {key: value for key, value in {"lr": base_lr, "weight_decay": weight_decay}.items() if value is not None}
    for_biases: dict[str, float] = {} if weight_decay_bias is None else {"weight_decay": weight_decay_bias}
    if bias_lr_factor not in (None, 1.0):
        for_biases["lr"] = _needed(base_lr, "bias_lr_factor") * bias_lr_factor
    by_name = dict(overrides or {})
    if for_biases and by_name.setdefault("bias", for_biases) is not for_biases:
        raise ValueError(f"Biases have {for_biases}, and {by_name['bias']} in overrides: give one of the two.")

    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, own_name = name.rpartition(".")
        options = dict(base)
        if weight_decay_norm is not None and isinstance(model.get_submodule(owner), _NORM_LAYERS):
            options["weight_decay"] = weight_decay_norm
        if lr_factor_func is not None:
            options["lr"] = _needed(base_lr, "lr_factor_func") * lr_factor_func(f"{owner}.{own_name}")
        groups.append({"params": [parameter], **options, **by_name.get(own_name, {})})
    return reduce_param_groups(groups)


def _needed(base_lr: float | None, why: str) -> float:
    if base_lr is None:
        raise ValueError(f"{why} is a factor of the learning rate: base_lr must be given, too.")
    return base_lr


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups of equal options; a parameter in several groups has the options of all, of which the later win.

    Returns:
        Groups and their parameters in the order of the first occurrence.
    """
    merged: dict[Any, dict[str, Any]] = {}
    for single in _expand_param_groups(params):
        lists = {key: single.pop(key) for key in ("params", "param_names") if key in single}
        known = merged.setdefault(tuple(single.items()), {**{key: [] for key in lists}, **single})
        for key, values in lists.items():
            known[key] += values
    return list(merged.values())


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A group for each parameter."""
    options: dict[Any, dict[str, Any]] = {}
    for group in params:
        for place, parameter in enumerate(group["params"]):
            own = {key: [group[key][place]] for key in ("params", "param_names") if key in group}
            options[parameter] = {**options.get(parameter, {}), **group, **own}
    return list(options.values())


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Make the schedule of ``cfg.SOLVER``: a warm-up, then the curve ``LR_SCHEDULER_NAME``; it steps every iteration.

    Raises:
        ValueError: for an unknown name of a schedule or a warm-up, or steps that do not ascend.
        AssertionError: if a cosine curve would rise.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME not in _CURVES:
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME!r}: one of {list(_CURVES)} was expected.")
    schedule = WarmupParamScheduler(
        _CURVES[solver.LR_SCHEDULER_NAME](solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, schedule, solver.MAX_ITER)


def _multi_step(solver: CfgNode) -> ParamScheduler:
    """A factor ``GAMMA`` at each of ``STEPS``; steps after the end of the run are left out with a warning."""
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        logger.warning("SOLVER.STEPS %s: those after SOLVER.MAX_ITER %d are ignored.", solver.STEPS, solver.MAX_ITER)
    values = [solver.GAMMA**count for count in range(len(steps) + 1)]
    return MultiStepParamScheduler(values, num_updates=solver.MAX_ITER, milestones=steps)


def _cosine(solver: CfgNode) -> ParamScheduler:
    """Half a period of a cosine from ``BASE_LR`` to ``BASE_LR_END``."""
    end = solver.BASE_LR_END / solver.BASE_LR
    if not 0 <= end <= 1:
        raise AssertionError(f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must lie between 0 and BASE_LR.")
    return CosineParamScheduler(1, end)


_CURVES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    # a factor GAMMA at NUM_DECAYS equally spaced steps
    "WarmupStepWithFixedGammaLR": lambda s: StepWithFixedGammaParamScheduler(1.0, s.NUM_DECAYS, s.GAMMA, s.MAX_ITER),
}
