"""Building the optimizer and the learning-rate schedule from a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

_NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,  # 1d, 2d, 3d, synchronised
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """Values of ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``."""

    VALUE = "value"
    NORM = "norm"


def _create_gradient_clipper(cfg: CfgNode) -> Callable[[torch.Tensor], Any]:
    """A function that clips the gradient of one parameter, from the node ``SOLVER.CLIP_GRADIENTS``."""
    value, norm = cfg.CLIP_VALUE, cfg.NORM_TYPE
    if GradientClipType(cfg.CLIP_TYPE) is GradientClipType.VALUE:
        return lambda parameter: nn.utils.clip_grad_value_(parameter, value)
    return lambda parameter: nn.utils.clip_grad_norm_(parameter, value, norm)


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer]
) -> torch.optim.Optimizer | type[torch.optim.Optimizer]:
    """Make an optimizer clip gradients before each step, if ``SOLVER.CLIP_GRADIENTS.ENABLED``.

    Each parameter is clipped on its own, by value or by its own norm; never by the norm of all gradients.

    Args:
        cfg: the whole config.
        optimizer: an optimizer, whose class is replaced by a subclass in place; or an optimizer class.

    Returns:
        The same optimizer, or a class.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    is_instance = isinstance(optimizer, torch.optim.Optimizer)
    base = type(optimizer) if is_instance else optimizer
    assert issubclass(base, torch.optim.Optimizer), base
    clip = _create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)

    def step(self: torch.optim.Optimizer, closure: Callable | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    clip(parameter)
        return base.step(self, closure)

    clipping = type(base.__name__ + "WithGradientClip", (base,), {"step": step})
    if not is_instance:
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, as the ``SOLVER`` keys say."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.SGD(
        params,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


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
    """Parameter groups of the trainable parameters, each parameter once, in order of the modules.

    Args:
        model: frozen parameters are left out.
        base_lr: learning rate of all groups; the optimizer's for None.
        weight_decay: weight decay of all groups; the optimizer's for None.
        weight_decay_norm: weight decay of the parameters of normalisation layers.
        bias_lr_factor: times ``base_lr`` is the learning rate of biases, those of normalisation layers included.
        weight_decay_bias: weight decay of biases, likewise.
        lr_factor_func: factor of the learning rate by full parameter name.
        overrides: hyper-parameters by the last part of the parameter name, such as "bias".

    Raises:
        ValueError: if a factor comes without ``base_lr``, or "bias" is overridden twice.
    """
    factor_of_biases = None if bias_lr_factor == 1.0 else bias_lr_factor
    for argument, given in (("bias_lr_factor", factor_of_biases), ("lr_factor_func", lr_factor_func)):
        if given is not None and base_lr is None:
            raise ValueError(f"{argument} requires base_lr")
    lr_of_biases = None if factor_of_biases is None else base_lr * factor_of_biases
    by_name = {**(overrides or {})}
    if of_biases := _given(lr=lr_of_biases, weight_decay=weight_decay_bias):
        if "bias" in by_name:
            raise ValueError("Conflicting overrides for 'bias'")
        by_name["bias"] = of_biases

    groups: dict[nn.Parameter, dict[str, Any]] = {}  # a parameter's first place counts
    for path, module, name, parameter in _own_parameters(model):
        if parameter in groups:
            continue
        group = groups[parameter] = {"params": [parameter], **_given(lr=base_lr, weight_decay=weight_decay)}
        if isinstance(module, _NORM_LAYERS):
            group |= _given(weight_decay=weight_decay_norm)
        if lr_factor_func is not None:
            group["lr"] *= lr_factor_func(f"{path}.{name}")
        group |= by_name.get(name, {})
    return reduce_param_groups([*groups.values()])


def _given(**values: float | None) -> dict[str, float]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Trainable parameters with path and module that they belong to, and their last name."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield path, module, name, parameter


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter; a parameter that occurs again gets the later values on top."""
    expanded: dict[Any, dict[str, Any]] = {}
    for group in params:
        shared = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for index, parameter in enumerate(group["params"]):
            own = expanded.setdefault(parameter, {})
            if "param_names" in group:
                own["param_names"] = [group["param_names"][index]]
            own.update(params=[parameter], **shared)
    return list(expanded.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge parameters of equal hyper-parameters, in order of their first occurrence.

    The optimizer stores its state by position, so this order is part of the checkpoint format.
    """
    merged: dict[tuple, dict[str, Any]] = {}
    for item in _expand_param_groups(params):
        lists = {key: item.pop(key) for key in ("params", "param_names") if key in item}
        group = merged.setdefault(tuple(item.items()), {**item, **{key: [] for key in lists}})
        for key, values in lists.items():
            group[key] += values
    return list(merged.values())


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME`` behind its warm-up.

    Raises:
        ValueError: for an unknown name.
    """
    solver = cfg.SOLVER
    schedule = WarmupParamScheduler(
        _build_multiplier(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _build_multiplier(solver: CfgNode) -> ParamScheduler:
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) < len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS contains values larger than SOLVER.MAX_ITER. These values will be ignored."
            )
        values = [solver.GAMMA**decays for decays in range(len(steps) + 1)]
        return MultiStepParamScheduler(values=values, milestones=steps, num_updates=solver.MAX_ITER)
    if name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end <= 1.0, end
        return CosineParamScheduler(1, end)
    if name == "WarmupStepWithFixedGammaLR":
        return StepWithFixedGammaParamScheduler(
            base_value=1.0, num_decays=solver.NUM_DECAYS, gamma=solver.GAMMA, num_updates=solver.MAX_ITER
        )
    raise ValueError(f"Unknown LR scheduler: {name}")
