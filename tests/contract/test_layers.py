"""Layers, by hand; on either implementation of Detectron2."""

from __future__ import annotations

import math

import detectron2
import pytest
import torch
from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    CycleBatchNormList,
    DeformConv,
    FrozenBatchNorm2d,
    ModulatedDeformConv,
    ShapeSpec,
    batched_nms,
    cat,
    ciou_loss,
    cross_entropy,
    diou_loss,
    get_norm,
    nonzero_tuple,
    shapes_to_tensor,
)
from torch import nn
from torch.nn import functional as F

needs_deform_conv = pytest.mark.skipif(
    not getattr(detectron2, "__standin__", False),
    reason="the installed Detectron2 may lack its compiled operators, without which it has no deformable convolution",
)


def test_conv_applies_norm_then_activation_and_takes_an_empty_batch() -> None:
    conv = Conv2d(1, 1, 1, bias=False, norm=FrozenBatchNorm2d(1), activation=F.relu)
    assert list(conv.state_dict())[:2] == ["weight", "norm.weight"]
    conv.weight.data.fill_(1.0)
    conv.norm.bias.fill_(-2.0)
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    assert conv(x).flatten().tolist() == [0, 1]  # relu(x - 2)
    conv = Conv2d(2, 3, 3, stride=2, padding=1)
    y = conv(torch.zeros(0, 2, 5, 5))
    assert y.shape == (0, 3, 3, 3)
    y.sum().backward()
    assert conv.weight.grad.abs().sum() == 0


def test_a_frozen_batch_norm_starts_as_the_identity_and_is_the_same_with_and_without_gradients() -> None:
    norm = FrozenBatchNorm2d(3)
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert not list(norm.parameters())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(norm(x), x)
    for name in ("weight", "bias", "running_mean"):
        getattr(norm, name).normal_()
    norm.running_var.uniform_(0.5, 2.0)
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x.clone().requires_grad_()), expected)


def test_frozen_batch_norm_reads_states_without_statistics() -> None:
    norm = FrozenBatchNorm2d(1)
    norm.running_var.fill_(9.0)
    norm.load_state_dict({"weight": torch.tensor([2.0]), "bias": torch.tensor([1.0])})
    assert (norm.running_mean.item(), norm.running_var.item()) == (0, 1)
    state = FrozenBatchNorm2d(1).state_dict()
    del state["running_var"]
    with pytest.raises(RuntimeError, match="running_var"):  # a state of today must be complete
        norm.load_state_dict(state)


def test_batch_norms_convert_to_frozen_ones() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2, eps=1e-3)))
    nn.init.normal_(model[1][0].weight)
    model(torch.randn(4, 1, 3, 3))
    model.eval()
    x = torch.randn(1, 1, 3, 3)
    expected = model(x)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert frozen is model
    assert isinstance(model[1][0], FrozenBatchNorm2d)
    assert model[1][0].eps == 1e-3
    assert "1.0.num_batches_tracked" in model.state_dict()
    torch.testing.assert_close(model(x), expected)


def test_a_frozen_block_has_nothing_to_train() -> None:
    class Block(CNNBlockBase):
        def __init__(self) -> None:
            super().__init__(1, 2, 4)
            self.conv = Conv2d(1, 2, 1, norm=nn.BatchNorm2d(2))

    block = Block()
    assert block.freeze() is block
    assert not any(p.requires_grad for p in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert (block.in_channels, block.out_channels, block.stride) == (1, 2, 4)


def test_norms_have_names_or_come_from_functions_or_from_nothing() -> None:
    kinds = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "FrozenBN": FrozenBatchNorm2d}
    assert {name: type(get_norm(name, 8)) for name in kinds} == kinds
    assert get_norm("", 8) is None
    assert get_norm(None, 8) is None
    assert get_norm(nn.InstanceNorm2d, 8).num_features == 8
    assert get_norm("GN", 64).num_groups == 32
    with pytest.raises(KeyError):
        get_norm("XN", 8)


def test_layer_norm_is_over_channels_and_naive_synchronized_norms_are_batch_norms_in_one_process() -> None:
    x = torch.randn(2, 5, 3, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (5,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(get_norm("LN", 5)(x), expected)
    for name in ("naiveSyncBN", "naiveSyncBN_N"):
        torch.testing.assert_close(get_norm(name, 5)(x), nn.BatchNorm2d(5)(x))


def test_cycling_norms_share_weights_but_not_statistics() -> None:
    norms = CycleBatchNormList(2, bn_class=nn.BatchNorm2d, num_features=1)
    assert [n for n, _ in norms.named_parameters()] == ["weight", "bias"]
    for _ in range(2):
        norms(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
        norms(torch.tensor([10.0, 30.0]).view(2, 1, 1, 1))
    # Momentum 0.1, twice: 0.19 of the means 1 and 20.
    assert [round(n.running_mean.item(), 6) for n in norms] == [0.19, 3.8]
    assert not list(CycleBatchNormList(2, num_features=1, affine=False).parameters())


def test_cross_entropy_of_nothing_is_zero_with_a_gradient() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert cross_entropy(torch.zeros(1, 3), torch.tensor([1])).item() == pytest.approx(math.log(3))


def test_small_tools() -> None:
    x = torch.zeros(2, 3)
    assert cat([x]) is x
    assert cat([x, x], dim=1).shape == (2, 6)
    rows, columns = nonzero_tuple(torch.tensor([[0, 1], [2, 0]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert ShapeSpec(channels=3) == ShapeSpec(3, None, None, None)


def test_suppression_is_within_a_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [50, 50, 60, 60]])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1])
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes.half(), scores, torch.tensor([0, 0, 0, 0]), 0.5).tolist() == [1, 3]


def test_box_losses_by_hand() -> None:
    a, b = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])
    # IoU 2/6; centres 1 apart; enclosing box 3 x 2, diagonal² 13; equal aspect ratios.
    expected = 1 - 1 / 3 + 1 / 13
    assert diou_loss(a, b).tolist() == pytest.approx([expected])
    assert ciou_loss(a, b, reduction="sum").item() == pytest.approx(expected)
    # 2 x 2 against 4 x 2, same corner: IoU 1/2, centres 1 apart, diagonal² 20, v = 4/pi² (atan 2 - atan 1)².
    c = torch.tensor([[0.0, 0, 4, 2]])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert ciou_loss(a, c, reduction="mean").item() == pytest.approx(0.5 + 1 / 20 + v * v / (0.5 + v), rel=1e-5)
    empty = torch.zeros(0, 4, requires_grad=True)
    assert diou_loss(empty, empty, reduction="mean").item() == 0
    with pytest.raises(AssertionError):
        diou_loss(a.flip(1), b)


@needs_deform_conv
@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolution_without_offsets_is_a_convolution(groups: int) -> None:
    conv = DeformConv(4, 6, 3, stride=2, padding=1, groups=groups, deformable_groups=2)
    x = torch.randn(2, 4, 7, 8)
    offset = torch.zeros(2, 2 * 2 * 9, 4, 4)
    expected = F.conv2d(x, conv.weight, stride=2, padding=1, groups=groups)
    torch.testing.assert_close(conv(x, offset), expected, atol=1e-5, rtol=1e-5)
    assert list(conv.state_dict()) == ["weight"]


@needs_deform_conv
def test_deformable_convolution_shifts_y_then_x_and_the_modulated_one_weights_its_points() -> None:
    conv = DeformConv(1, 1, 1)
    conv.weight.data.fill_(1.0)
    x = torch.arange(12.0).view(1, 1, 3, 4)
    offset = torch.zeros(1, 2, 3, 4)
    offset[:, 0] = 1  # one row down
    assert conv(x, offset)[0, 0, 0].tolist() == [4, 5, 6, 7]
    conv = ModulatedDeformConv(2, 3, 3, padding=1, norm=FrozenBatchNorm2d(3), activation=F.relu)
    conv.bias.data.normal_()
    x = torch.randn(1, 2, 5, 5)
    half = conv(x, torch.zeros(1, 18, 5, 5), torch.full((1, 9, 5, 5), 0.5))
    expected = F.relu(F.conv2d(x, conv.weight / 2, conv.bias, padding=1))
    torch.testing.assert_close(half, expected, atol=1e-5, rtol=1e-5)
    assert conv(x[:0], torch.zeros(0, 18, 5, 5), torch.zeros(0, 9, 5, 5)).shape == (0, 3, 5, 5)
