"""Parameter groups, gradient clipping and learning rates, by hand; on either implementation of Detectron2."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import (
    LRMultiplier,
    WarmupParamScheduler,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(2, 1)
        self.again = self.head  # shared: must occur once


def _named(model: nn.Module, groups: list[dict]) -> list[tuple[dict, list[str]]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ({k: v for k, v in group.items() if k != "params"}, [names[id(p)] for p in group["params"]]) for group in groups
    ]


def test_norm_parameters_get_their_own_group_behind_the_weights() -> None:
    model = _Net()
    groups = get_default_optimizer_params(model, base_lr=0.1, weight_decay_norm=0.0)
    assert _named(model, groups) == [
        ({"lr": 0.1}, ["conv.weight", "conv.bias", "head.weight", "head.bias"]),
        ({"lr": 0.1, "weight_decay": 0.0}, ["norm.weight", "norm.bias"]),
    ]
    ((options, names),) = _named(model, get_default_optimizer_params(model))
    assert (options, len(names)) == ({}, 6)


def test_biases_of_norms_too_follow_the_bias_options() -> None:
    model = _Net()
    groups = get_default_optimizer_params(
        model, base_lr=0.1, weight_decay=0.5, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.25
    )
    assert _named(model, groups) == [
        ({"lr": 0.1, "weight_decay": 0.5}, ["conv.weight", "head.weight"]),
        ({"lr": 0.2, "weight_decay": 0.25}, ["conv.bias", "norm.bias", "head.bias"]),
        ({"lr": 0.1, "weight_decay": 0.0}, ["norm.weight"]),
    ]


def test_factors_by_name_and_overrides_by_parameter() -> None:
    model = _Net()
    factors = {"lr_factor_func": lambda name: 0.5 if name.startswith("head") else 1.0}
    groups = get_default_optimizer_params(model, base_lr=1.0, overrides={"bias": {"weight_decay": 9.0}}, **factors)
    expected = [{"lr": lr, **decay} for lr in (1.0, 0.5) for decay in ({}, {"weight_decay": 9.0})]
    assert [values for values, _ in _named(model, groups)] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 1.0, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="base_lr|overrides"):
        get_default_optimizer_params(_Net(), **options)


def test_groups_are_merged_in_order_of_first_occurrence_and_later_values_win() -> None:
    rows = ("ab", 1.0), ("c", 2.0), ("b", 2.0), ("d", 1.0)
    groups = [{"params": [*names], "lr": lr} for names, lr in rows]
    assert reduce_param_groups(groups) == [{"params": ["a", "d"], "lr": 1.0}, {"params": ["b", "c"], "lr": 2.0}]


def _cfg(**solver: object) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 1.0, 20, (10, 15), 5
    cfg.SOLVER.merge_from_other_cfg(CfgNode(solver))
    return cfg


def test_the_optimizer_is_sgd_of_the_config() -> None:
    optimizer = build_optimizer(_cfg(MOMENTUM=0.8, WEIGHT_DECAY=0.3, NESTEROV=True), _Net())
    assert type(optimizer) is torch.optim.SGD
    weights, norms = optimizer.param_groups
    expected = {"lr": 1.0, "momentum": 0.8, "nesterov": True, "weight_decay": 0.3, "foreach": True, "dampening": 0}
    assert {key: weights[key] for key in expected} == expected
    assert norms["weight_decay"] == 0.0


@pytest.mark.parametrize(("clip_type", "expected"), [("value", [1.0, 1.0]), ("norm", [0.6, 0.8])])
def test_each_parameter_is_clipped_alone(clip_type: str, expected: list[float]) -> None:
    cfg = _cfg(MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", clip_type])
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))])
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer).__name__ == "SGDWithGradientClip"
    assert isinstance(optimizer, torch.optim.SGD)
    model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    optimizer.step()
    assert (-model[0]).tolist() == pytest.approx(expected, abs=1e-5)
    assert (-model[1]).tolist() == pytest.approx([0.3, 0.4])  # untouched by the large gradient of the other


def test_an_optimizer_class_can_be_made_to_clip() -> None:
    cfg = _cfg()
    assert maybe_add_gradient_clipping(cfg, torch.optim.AdamW) is torch.optim.AdamW
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    clipping = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    assert issubclass(clipping, torch.optim.AdamW)
    assert clipping.__name__ == "AdamWWithGradientClip"
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([5.0])
    clipping([parameter], lr=0.1).step()
    assert parameter.grad.item() == 1.0


def _series(cfg: CfgNode, count: int = 20) -> list[float]:
    optimizer = build_optimizer(cfg, _Net())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < count:
            scheduler.step()
    return rates


WARM_UP = [0.001, 0.2008, 0.4006, 0.6004, 0.8002]


def test_multi_step_and_fixed_gamma_series_by_hand() -> None:
    assert _series(_cfg()) == pytest.approx(WARM_UP + [1.0] * 5 + [0.1] * 5 + [0.01] * 5)
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR", NUM_DECAYS=1, WARMUP_METHOD="constant")
    assert _series(cfg) == pytest.approx([0.001] * 5 + [1.0] * 5 + [0.1] * 10)


def test_cosine_warm_up_ends_at_the_value_of_the_schedule() -> None:
    rates = _series(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR"))
    assert rates[0] == pytest.approx(0.001)
    assert rates[5] == pytest.approx(0.853553, abs=1e-6)  # (1 + cos(pi/4)) / 2
    assert rates[1] == pytest.approx(0.001 + (0.853553 - 0.001) / 5, abs=1e-6)
    assert rates[-1] == pytest.approx(0.006156, abs=1e-6)


def test_steps_beyond_the_run_are_dropped_with_a_warning(d2_log: pytest.LogCaptureFixture) -> None:
    assert _series(_cfg(STEPS=(10, 99))) == pytest.approx(WARM_UP + [1.0] * 5 + [0.1] * 10)
    (record,) = d2_log.records
    assert record.levelname == "WARNING"
    assert record.name.endswith("solver.build")  # Detectron2 writes its short name into the record once it has a logger
    assert "SOLVER.STEPS" in record.getMessage()


def test_the_state_is_base_rates_and_position_and_stepping_beyond_the_run_raises() -> None:
    cfg = _cfg(MAX_ITER=4, STEPS=(2,), WARMUP_ITERS=0)
    optimizer = build_optimizer(cfg, _Net())
    scheduler = build_lr_scheduler(cfg, optimizer)
    for number, expected in enumerate((1.0, 0.1, 0.1, 0.1), start=1):  # the last step comes to the end itself
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert scheduler.state_dict() == {"base_lrs": [1.0, 1.0], "last_epoch": number}
    with pytest.raises(RuntimeError):
        scheduler.step()


def test_the_linear_warm_up_meets_a_falling_schedule() -> None:
    schedule = WarmupParamScheduler(LinearParamScheduler(1, 0), 0.5, 0.5)
    # warm-up from 0.5 * s(0) to s(0.5), which is 0.5 as well; then s(0.5), s(0.75)
    assert [schedule(position) for position in (0, 0.25, 0.5, 0.75)] == pytest.approx([0.5, 0.5, 0.5, 0.25])


def test_unknown_names_are_refused() -> None:
    optimizer = build_optimizer(_cfg(), _Net())
    with pytest.raises(ValueError, match="Nope"):
        build_lr_scheduler(_cfg(LR_SCHEDULER_NAME="Nope"), optimizer)
    with pytest.raises(ValueError, match="nope"):
        build_lr_scheduler(_cfg(WARMUP_METHOD="nope"), optimizer)
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(optimizer, lambda t: t, max_iter=3)  # type: ignore[arg-type]
