"""Gradient clipping by the norm of the whole model, against Detectron2's by parameter."""

from __future__ import annotations

from d2_ext import add_d2_ext_config
from d2_ext.engine.optimizer import OPTIMIZERS, build_optimizer
from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.context_norm import ContextGroupNorm
from d2_ext.layers.sparse.layer import ContextLayer
from d2_ext.layers.sparse.position_norm import PositionNorm
from d2_ext.modeling.backbone import MogaNet

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch.nn.modules.batchnorm import _BatchNorm


def _cfg(clip_type: str, enabled: bool = True) -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.MOMENTUM = 0.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = enabled
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    return cfg


def _step(clip_type: str, enabled: bool = True) -> list[float]:
    """One step of SGD with lr 1 from zero, gradients 3 and 4: minus the clipped gradients."""
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1)) for _ in range(2)])
    optimizer = build_optimizer(_cfg(clip_type, enabled), model)
    for parameter, gradient in zip(model, (3.0, 4.0)):
        parameter.grad = torch.tensor([gradient])
    optimizer.step()
    return [-p.item() for p in model]


def test_full_model_clipping_scales_all_gradients_together() -> None:
    assert _step("full_model") == pytest.approx([0.6, 0.8], abs=1e-5)  # norm of (3, 4) is 5


def test_norm_clipping_treats_each_parameter_alone() -> None:
    assert _step("norm") == pytest.approx([1.0, 1.0], abs=1e-5)


def test_nothing_is_clipped_unless_enabled() -> None:
    assert _step("full_model", enabled=False) == [3.0, 4.0]


def test_adamw_takes_steps_of_the_learning_rate_and_groups_by_weight_decay() -> None:
    cfg = _cfg("norm", enabled=False)
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.5
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    torch.nn.init.zeros_(model[0].weight)
    optimizer = build_optimizer(cfg, model)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.5]
    model[0].weight.grad = torch.tensor([[123.0]])
    optimizer.step()
    assert model[0].weight.item() == pytest.approx(-1.0)  # the first step of Adam is lr * sign(gradient)


def test_adamw_exempts_layer_scales_norms_and_nothing_else_of_moganet_from_weight_decay() -> None:
    cfg = _cfg("norm", enabled=False)
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    model = MogaNet(arch="xtiny", out_features=["stage1"])
    decay = {p: group["weight_decay"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    exempt = {name for name, parameter in model.named_parameters() if decay[parameter] == 0.0}
    norms = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, _BatchNorm) for p in ("weight", "bias")}
    scales = {name for name, _ in model.named_parameters() if "scale" in name}
    assert exempt == norms | scales
    assert len(scales) == 3 * 4  # two layer scales and two factors in each of three blocks
    assert set(decay.values()) == {0.0, 0.05}


@pytest.mark.parametrize("norm", [ContextGroupNorm(num_channels=4, num_groups=2), PositionNorm(4)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_norms_of_sparse_towers_have_the_weight_decay_of_norms(name: str, norm: torch.nn.Module) -> None:
    cfg = _cfg("norm", enabled=False)
    cfg.merge_from_list(["SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.WEIGHT_DECAY_NORM", 0.25])
    layer = ContextLayer(4, norm)
    decay = {p: group["weight_decay"] for group in build_optimizer(cfg, layer).param_groups for p in group["params"]}
    assert [decay[parameter] for parameter in norm.parameters()] == [0.25, 0.25]
    assert decay[layer.conv.weight] == 0.5


def test_weight_decay_of_scales_can_be_chosen() -> None:
    cfg = _cfg("norm", enabled=False)
    cfg.merge_from_list(["SOLVER.OPTIMIZER", "AdamW", "SOLVER.WEIGHT_DECAY_SCALE", 0.25])
    model = torch.nn.ParameterDict({"scale": torch.zeros(1)})
    assert [group["weight_decay"] for group in build_optimizer(cfg, model).param_groups] == [0.25]


def test_an_unknown_optimizer_is_refused() -> None:
    cfg = _cfg("norm")
    cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(ConfigError, match="SOLVER.OPTIMIZER 'Adam' is unknown. Did you mean 'AdamW'"):
        build_optimizer(cfg, torch.nn.Linear(1, 1))


def test_an_unknown_clip_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fullmodel' is unknown"):
        _step("fullmodel")
