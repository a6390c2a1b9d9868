from __future__ import annotations

from pathlib import Path

from d2_ext.errors import ConfigError
from d2_ext.layers.drop_path import DropPath, linear_drop_rates
from d2_ext.modeling.backbone import MOGANET_SPECS, MogaNet
from d2_ext.modeling.backbone.moganet import GatedAggregation, MultiOrderDepthwise

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from helpers.golden import assert_matches, filled_image, filled_state, load, reference_keys
from helpers.network_sizes import count, gmacs

# parameters of the classifier and of the trunk; of the classifier: GMACs at 224x224, entries of the state dict
SIZES = {
    "xtiny": (2_956_066, 2_763_066, 0.782, 705),
    "tiny": (5_197_332, 4_940_332, 1.083, 777),
    "small": (25_335_675, 24_822_675, 4.931, 741),
    "base": (43_720_475, 43_207_475, 9.861, 1317),
    "large": (82_480_978, 81_839_978, 15.820, 2145),
    "xlarge": (180_991_924, 180_030_924, 34.395, 2217),
}


@pytest.mark.parametrize("arch", SIZES)
def test_sizes_of_an_architecture_equal_the_published_ones(arch: str) -> None:
    parameters, trunk_parameters, macs, entries = SIZES[arch]
    with torch.device("meta"):
        trunk = MogaNet(arch=arch)
        classifier = MogaNet(arch=arch, out_features=["logits"], num_classes=1000)
    assert count(trunk) == trunk_parameters
    assert count(classifier) == parameters
    assert round(gmacs(classifier), 3) == macs
    assert len(classifier.state_dict()) == entries


def test_state_dict_has_the_published_names_and_shapes_in_their_order(golden: Path) -> None:
    with torch.device("meta"):
        state = MogaNet(arch="xtiny").state_dict()
    assert [(key, list(value.shape)) for key, value in state.items()] == reference_keys(golden, "moganet_xtiny")


def test_outputs_equal_those_of_the_reference(golden: Path) -> None:
    reference = load(golden, "backbone_moganet_xtiny")
    net = MogaNet(arch="xtiny").eval()
    net.load_state_dict(filled_state(reference_keys(golden, "moganet_xtiny"), gain=1.0), strict=False)
    with torch.no_grad():
        outputs = net(filled_image(*reference["hw"]))
        full = net(filled_image(*reference["full_hw"]))
    for output, expected in zip(outputs.values(), reference["outputs"].values(), strict=True):
        assert_matches(output, expected)
    for output, expected in zip(full.values(), reference["full"].values(), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((225, 333), [(57, 84), (57, 84), (29, 42), (15, 21), (8, 11)]),
        ((1, 1), [(1, 1)] * 5),
        ((29, 29), [(8, 8), (8, 8), (4, 4), (2, 2), (1, 1)]),
    ],
)
def test_odd_sides_are_rounded_up(size: tuple[int, int], sides: list[tuple[int, int]]) -> None:
    net = MogaNet(arch="xtiny", out_features=["stem", "stage1", "stage2", "stage3", "stage4"]).eval()
    with torch.no_grad():
        outputs = net(torch.zeros(1, 3, *size))
    assert [tuple(x.shape[-2:]) for x in outputs.values()] == sides
    assert [s.stride for s in net.output_shape().values()] == [4, 4, 8, 16, 32]


def test_contexts_are_slices_of_an_eighth_three_eighths_and_a_half_of_the_first_convolution() -> None:
    layer = MultiOrderDepthwise(32)
    assert layer.slices == (4, 12, 16)
    x = torch.rand(1, 32, 9, 9)
    v0 = layer.DW_conv0(x)
    expected = torch.cat([v0[:, :4], layer.DW_conv1(v0[:, 4:16]), layer.DW_conv2(v0[:, 16:])], dim=1)
    torch.testing.assert_close(layer(x), layer.PW_conv(expected))


def test_gate_with_double_activation_is_another_function() -> None:
    single = GatedAggregation(8, scale_init=0.5, double_silu=False)
    double = GatedAggregation(8, scale_init=0.5, double_silu=True)
    double.load_state_dict(single.state_dict())
    x = torch.randn(1, 8, 6, 6)
    a = single.proj_1(x)
    a = F.silu(a + 0.5 * (a - a.mean(dim=(2, 3), keepdim=True)))
    gate, value = F.silu(single.gate(a)), F.silu(single.value(a))
    torch.testing.assert_close(single(x), single.proj_2(gate * value) + x)
    torch.testing.assert_close(double(x), double.proj_2(F.silu(gate) * F.silu(value)) + x)


def test_drop_path_rises_linearly_and_keeps_the_mean() -> None:
    assert linear_drop_rates(0.1, 3) == pytest.approx([0.0, 0.05, 0.1])
    net = MogaNet(arch="xtiny", drop_path_rate=0.17)
    rates = [m.rate for m in net.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.01 * i for i in range(18)])
    layer = DropPath(0.25)
    x = torch.ones(8000, 2)
    dropped = layer.train()(x)
    assert torch.equal(dropped[:, 0], dropped[:, 1])  # whole samples
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(layer.eval()(x), x)


def test_freezing_works_and_covers_the_norm_behind_the_stage() -> None:
    net = MogaNet(arch="xtiny", freeze_at=2)
    assert isinstance(net.norm1, FrozenBatchNorm2d)
    assert isinstance(net.norm2, nn.BatchNorm2d)
    assert not net.blocks1[0].layer_scale_1.requires_grad
    assert net.patch_embed2.projection.weight.requires_grad


def test_initial_weights_are_normal_with_fan_out_in_the_detection_form_too() -> None:
    net = MogaNet(arch="xtiny")
    assert net.patch_embed2.projection.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)  # 0.059
    assert net.patch_embed2.projection.bias.abs().max() == 0
    assert net.blocks1[0].layer_scale_1.unique().tolist() == pytest.approx([1e-5])
    depthwise = net.blocks4[0].attn.value.DW_conv2.weight
    assert depthwise.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "x-tiny"}, "no architecture 'x-tiny'. Did you mean 'xtiny'"),
        ({"out_features": ["stage5"]}, "no 'stage5'"),
        ({"norm": ""}, "MODEL.MOGANET.NORM is empty"),
        ({"freeze_at": 6}, "MogaNet has 5"),
    ],
)
def test_a_wrong_option_is_refused_with_what_to_do(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        MogaNet(**options)


def test_unknown_options_are_errors() -> None:
    with pytest.raises(TypeError):
        MogaNet(out_indices=(1, 2, 3))


def test_stages_behind_the_last_requested_feature_are_not_built() -> None:
    net = MogaNet(arch="xtiny", out_features=["stage2"])
    assert not hasattr(net, "patch_embed3")
    assert len(MOGANET_SPECS) == 6
