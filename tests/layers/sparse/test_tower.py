"""Context-enhanced sparse tower: the sparse path computes what the dense definition does."""

from __future__ import annotations

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.gumbel import Mask
from d2_ext.layers.sparse.tower import ContextSparseTower, SparseTowerConfig

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = [(2, 8, 10), (2, 4, 5), (2, 2, 3), (1, 7, 7), (2, 1, 1)]


def tower(**changes: object) -> ContextSparseTower:
    shared = {k: changes.pop(k) for k in list(changes) if k in SparseTowerConfig.__dataclass_fields__}
    arguments = {"channels": 16, "num_layers": 3, "outputs": {"a": 6, "b": 2}, "bases": {"a": -8.0}}
    built = ContextSparseTower(**{**arguments, **changes}, config=SparseTowerConfig(**{"norm_groups": 4, **shared}))
    for parameter in built.parameters():  # far from the initial values, which hide mistakes
        torch.nn.init.normal_(parameter, std=0.15)
    return built


@pytest.fixture
def maps() -> list[Tensor]:
    return [torch.randn(n, 16, h, w) for n, h, w in SHAPES]


def random_masks(share: float) -> list[Mask]:
    return [Mask((torch.rand(n, 1, h, w) < share).float()) for n, h, w in SHAPES]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("norm", ["CE-GN", "LN"])
def test_sparse_and_dense_path_agree(maps: list[Tensor], share: float, gradient: bool, norm: str) -> None:
    built = tower(norm=norm).eval()
    masks = random_masks(share)
    with torch.set_grad_enabled(gradient):
        sparse, dense = built(maps, masks), built.forward_dense(maps, masks)
    for name in ("a", "b"):
        torch.testing.assert_close(
            sparse.predictions[name].dense(), dense.predictions[name].dense(), rtol=1e-4, atol=1e-5
        )
    assert sparse.norm_loss is None
    assert len(sparse.predictions["a"].values) == sum(int(m.active.sum()) for m in masks)


@pytest.mark.parametrize("norm", ["CE-GN", "LN"])
def test_masks_open_in_training_leave_the_towers_dense(maps: list[Tensor], norm: str) -> None:
    built = tower(norm=norm, open_in_training=True).train()
    x = maps[0]
    mask = built.mask(x)
    out = built([x], [mask])
    everywhere = built.forward_dense([x], [Mask(torch.ones_like(mask.active))])
    torch.testing.assert_close(out.predictions["a"].dense(), everywhere.predictions["a"].dense())
    assert not torch.equal(mask.active, torch.ones_like(mask.active)), "nothing would be tested"


def test_inference_closes_masks_that_training_leaves_open(maps: list[Tensor]) -> None:
    built = tower(norm="LN", open_in_training=True).eval()
    masks = random_masks(0.4)
    out = built(maps, masks)
    assert len(out.predictions["a"].values) == sum(int(m.active.sum()) for m in masks)


def test_a_layer_with_a_norm_of_each_position_equals_its_formula(maps: list[Tensor]) -> None:
    built = tower(num_layers=1, norm="LN")
    x, mask = maps[0], random_masks(0.4)[0].active
    layer, g = built.layers[0], built.context_conv(x)
    y = layer.conv(x)
    norm = layer.norm.channels
    z = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    z = z * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    expected = mask * built.predictors["a"](F.relu(mask * z + g)) - 8 * (1 - mask)
    out = built.forward_dense([x], [Mask(mask)])
    torch.testing.assert_close(out.predictions["a"].maps()[0], expected, rtol=1e-4, atol=1e-5)
    assert out.norm_loss is None


def test_one_layer_equals_its_formula(maps: list[Tensor]) -> None:
    built = tower(num_layers=1)
    x, mask = maps[0], random_masks(0.4)[0].active
    g = built.context_conv(x)
    groups = g.reshape(2, 4, -1)
    mean, var = groups.mean(2), groups.var(2, unbiased=True)  # (N, groups)
    mean, var = (v.repeat_interleave(4, 1)[:, :, None, None] for v in (mean, var))
    layer = built.layers[0]
    y = layer.conv(x)
    z = (y - mean) / (var + 1e-5).sqrt() * layer.norm.weight.view(-1, 1, 1) + layer.norm.bias.view(-1, 1, 1)
    features = F.relu(mask * z + g)
    expected = mask * built.predictors["a"](features) - 8 * (1 - mask)
    out = built.forward_dense([x], [Mask(mask)])
    torch.testing.assert_close(out.predictions["a"].maps()[0], expected, rtol=1e-4, atol=1e-5)
    target = mask * F.group_norm(y, 4, layer.norm.weight, layer.norm.bias)
    torch.testing.assert_close(out.norm_loss, ((mask * z - target) ** 2).mean().view(1))


def test_the_norm_loss_can_compare_with_the_plain_convolution(maps: list[Tensor]) -> None:
    built = tower(num_layers=1, norm_loss_target="conv")
    x, mask = maps[0], torch.ones(2, 1, 8, 10)
    layer = built.layers[0]
    y = layer.conv(x)
    z = layer.norm(y, layer.norm.statistics(built.context_conv(x).flatten(2).transpose(1, 2)))
    torch.testing.assert_close(built.forward_dense([x], [Mask(mask)]).norm_loss[0], ((z - y) ** 2).mean())


def test_an_image_does_not_feel_the_others_of_its_batch(maps: list[Tensor]) -> None:
    built = tower().eval()
    masks = random_masks(0.4)
    with torch.no_grad():
        together = built(maps[:2], masks[:2]).predictions["a"].maps()
        alone = built([m[1:] for m in maps[:2]], [Mask(m.active[1:]) for m in masks[:2]]).predictions["a"].maps()
    for batch, single in zip(together, alone):
        torch.testing.assert_close(batch[1:], single, rtol=1e-5, atol=1e-6)


def test_the_norm_loss_pulls_the_layers_but_not_its_own_target(maps: list[Tensor]) -> None:
    built = tower(num_layers=1)
    mask = torch.ones(2, 1, 8, 10)
    built.forward_dense(maps[:1], [Mask(mask)]).norm_loss.sum().backward()
    # d/d bias of mean((a - d)^2) with d detached is the mean of 2 (a - d) per channel, over all N*C*H*W elements
    layer = built.layers[0]
    with torch.no_grad():
        y = layer.conv(maps[0])
        a = layer.norm(y, layer.norm.statistics(built.context_conv(maps[0]).flatten(2).transpose(1, 2)))
        expected = (2 * (a - layer.norm.ordinary(y))).sum((0, 2, 3)) / a.numel()
    torch.testing.assert_close(layer.norm.bias.grad, expected, rtol=1e-4, atol=1e-6)


def test_every_parameter_learns_in_training(maps: list[Tensor]) -> None:
    built = tower().train()
    masks = [built.mask(x) for x in maps]
    out = built(maps, masks)
    total = out.norm_loss.sum() + sum(p.values.square().sum() for p in out.predictions.values())
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())


def test_masks_are_noisy_in_training_only(maps: list[Tensor]) -> None:
    built = tower()
    x = maps[0]
    assert not torch.equal(built.train().mask(x).active, built.train().mask(x).active)
    expected = (built.mask_conv(x) >= 0).float()
    assert torch.equal(built.eval().mask(x).active, expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_output_carries_the_masks_and_what_they_were_made_from(maps: list[Tensor], training: bool) -> None:
    built = tower().train(training)
    masks = [built.mask(x) for x in maps]
    for x, mask in zip(maps, built(maps, masks).masks, strict=True):
        torch.testing.assert_close(mask.logits, built.mask_conv(x), rtol=1e-4, atol=1e-5)
        assert mask.logits.requires_grad == mask.active.requires_grad == training


def test_mixed_precision_keeps_both_paths_close(maps: list[Tensor]) -> None:
    built = tower().eval()
    masks = random_masks(0.4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        sparse = built(maps, masks).predictions["a"].dense()
        dense = built.forward_dense(maps, masks).predictions["a"].dense()
    assert (sparse.float() - dense.float()).abs().max() < 0.1
    with torch.no_grad():
        exact = built(maps, masks).predictions["a"].dense()
    assert (sparse.float() - exact).abs().max() < 0.2


def test_initial_values_are_those_of_the_paper_code() -> None:
    built = ContextSparseTower(channels=64, num_layers=2, outputs={"a": 36})
    for conv in (built.layers[0].conv, built.layers[1].conv, built.predictors["a"]):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not conv.bias.any()
    # PyTorch's default: uniform within 1 / sqrt(fan in)
    assert 0.11 < built.context_conv.weight.abs().max().item() <= 64**-0.5
    assert 0.03 < built.mask_conv.weight.abs().max().item() <= (64 * 9) ** -0.5
    assert torch.equal(built.layers[0].norm.weight, torch.ones(64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_groups": 5}, "16 channels cannot be split into 5 groups"),
        ({"norm": "BN"}, "'BN' is not known. Known: CE-GN, LN"),
        ({"norm_loss_target": "dense"}, "'dense' is not known. Known: conv, group_norm"),
        ({"num_layers": 0}, "at least one layer"),
        ({"temperature": 0.0}, "must be positive"),
    ],
)
def test_values_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tower(**changes)
