"""Gradients of the training path against finite differences, in float64."""

from __future__ import annotations

from d2_ext.layers.sparse.gumbel import Mask
from d2_ext.layers.sparse.tower import ContextSparseTower, SparseTowerConfig

import pytest
import torch
from torch import Tensor

SHAPES = [(2, 2, 3), (1, 1, 2)]


@pytest.fixture
def tower() -> ContextSparseTower:
    built = ContextSparseTower(
        channels=4, num_layers=2, outputs={"a": 2}, bases={"a": -8.0}, config=SparseTowerConfig(norm_groups=2)
    ).double()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return built.train()


def inputs() -> tuple[list[Tensor], list[Tensor]]:
    maps = [torch.randn(n, 4, h, w, dtype=torch.float64, requires_grad=True) for n, h, w in SHAPES]
    # Between 0 and 1, because the straight-through mask hands its gradient on as if it were continuous.
    masks = [torch.rand(n, 1, h, w, dtype=torch.float64, requires_grad=True) for n, h, w in SHAPES]
    return maps, masks


def with_parameters(tower: ContextSparseTower) -> tuple[list[str], list[Tensor]]:
    named = {k: v for k, v in tower.named_parameters() if not k.startswith("mask_conv")}
    return list(named), list(named.values())


def test_predictions_have_the_right_gradients(tower: ContextSparseTower) -> None:
    maps, masks = inputs()
    _, parameters = with_parameters(tower)

    def predict(*tensors: Tensor) -> Tensor:  # the parameters are changed in place by gradcheck
        return tower(tensors[:2], [Mask(m) for m in tensors[2:4]]).predictions["a"].values

    assert torch.autograd.gradcheck(predict, (*maps, *masks, *parameters))


@pytest.mark.parametrize("target", ["group_norm", "conv"])
def test_the_norm_loss_has_the_right_gradients_for_a_fixed_target(tower: ContextSparseTower, target: str) -> None:
    tower.norm_loss_target = target
    maps, masks = inputs()
    _, parameters = with_parameters(tower)
    targets: list[Tensor] = []
    compute = tower._norm_target

    def remember(*arguments: object) -> Tensor:
        targets.append(compute(*arguments))
        return targets[-1]

    tower._norm_target = remember
    tower(maps, [Mask(m) for m in masks])  # the targets of the unchanged tensors
    fixed = list(targets)

    def loss(*tensors: Tensor) -> Tensor:
        remaining = iter(fixed)
        tower._norm_target = lambda *_: next(remaining)
        return tower(tensors[:2], [Mask(m) for m in tensors[2:4]]).norm_loss

    used = [p for p in parameters if p.shape[0] == 4]  # not the prediction layer
    assert torch.autograd.gradcheck(loss, (*maps, *masks, *used))


def test_the_mask_convolution_learns_through_the_relaxed_mask(tower: ContextSparseTower) -> None:
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    uniform = (torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3))
    mask = tower.mask(x, uniform).active
    (gradient,) = torch.autograd.grad(mask.sum(), tower.mask_conv.bias)
    noise = [-torch.log(-torch.log(u + 1e-8) + 1e-8) for u in uniform]
    soft = torch.sigmoid(tower.mask_conv(x) + noise[0] - noise[1])
    torch.testing.assert_close(gradient, (soft * (1 - soft)).sum().view(1), rtol=1e-5, atol=1e-6)
