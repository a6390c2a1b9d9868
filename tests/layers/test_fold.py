from __future__ import annotations

from d2_ext.layers.fold import fold_norms
from d2_ext.modeling.backbone import DetNet, MogaNet, VoVNet

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn


def shake_norms(model: nn.Module) -> nn.Module:
    """Give every norm statistics and an affine part that are not the identity."""
    for module in model.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
                getattr(module, name).data.uniform_(low, high)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_one_norm_folds_to_hand_computed_values() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    net[0].weight.data.fill_(2.0)
    net[0].bias.data.fill_(1.0)
    net[1].running_mean.fill_(3.0)
    net[1].running_var.fill_(4.0)
    net[1].weight.data.fill_(5.0)
    net[1].bias.data.fill_(7.0)
    folded = fold_norms(net)
    # y = 5 * (2x + 1 - 3) / 2 + 7 = 5x + 2
    assert folded[0].weight.item() == 5.0
    assert folded[0].bias.item() == 2.0
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(net[1], nn.BatchNorm2d)  # the original is left as it was


NETWORKS = {
    "VoVNet": lambda norm: VoVNet(body="V-19-slim-eSE", norm=norm),
    "VoVNet depthwise": lambda norm: VoVNet(body="V-19-slim-dw-eSE", norm=norm),
    "VoVNet deformable": lambda norm: VoVNet(
        body="V-19-slim-eSE", norm=norm, stage_with_dcn=(False, False, False, True), modulated_dcn=True
    ),
    "DetNet": lambda norm: DetNet(norm=norm),
    "MogaNet": lambda norm: MogaNet(arch="xtiny", norm=norm, scale_init=0.01),
}


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_give_the_same_features(name: str, norm: str) -> None:
    net = shake_norms(NETWORKS[name](norm))
    folded = fold_norms(net, channels_last=norm == "BN")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, outputs = net(x), folded(x)
    for feature, output in outputs.items():
        size = expected[feature].abs().max()
        assert (output - expected[feature]).abs().max() <= 1e-5 * size, feature


def test_layout_of_the_folded_network_can_be_chosen() -> None:
    net = VoVNet(body="V-19-slim-eSE", out_features=["stage2"]).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert fold_norms(net)(x)["stage2"].is_contiguous(memory_format=torch.channels_last)
        assert fold_norms(net, channels_last=False)(x)["stage2"].is_contiguous()


@pytest.mark.parametrize(("name", "left"), [("VoVNet", 0), ("VoVNet deformable", 0), ("DetNet", 0), ("MogaNet", 40)])
def test_only_norms_that_follow_no_convolution_are_left(name: str, left: int) -> None:
    folded = fold_norms(NETWORKS[name]("BN"))  # MogaNet: two for each of 18 blocks, and 4 behind the stages
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == left


def test_what_cannot_be_folded_stays() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 1),
        nn.GroupNorm(32, 32),
        Conv2d(32, 4, 1, activation=nn.ReLU()),
        nn.BatchNorm2d(4),  # behind an activation
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, track_running_stats=False),  # has no statistics of its own
    )
    assert str(fold_norms(net)) == str(net)
