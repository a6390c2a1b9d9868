from __future__ import annotations

import logging
from pathlib import Path

from d2_ext.errors import ConfigError
from d2_ext.modeling.backbone import VOVNET_SPECS, VoVNet
from d2_ext.modeling.backbone.vovnet import EffectiveSqueezeExcitation
from d2_ext.modeling.backbone.vovnet_names import module_name, published_name

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from helpers.golden import assert_matches, filled_image, filled_state, load, reference_keys
from helpers.network_sizes import count, gmacs

ALL_FEATURES = ["stem", "stage2", "stage3", "stage4", "stage5"]
SMALL = "V-19-slim-dw-eSE"

# body: parameters with BN, with FrozenBN, GMACs of one 224x224 image, entries of the state dict with BN, convolutions
SIZES = {
    "V-19-slim-dw-eSE": (1_384_752, 1_379_152, 0.398, 154, 40),
    "V-19-dw-eSE": (5_518_080, 5_506_944, 1.332, 160, 41),
    "V-19-slim-eSE": (2_653_136, 2_647_984, 1.680, 122, 23),
    "V-19-eSE": (10_180_416, 10_170_560, 4.121, 122, 23),
    "V-39-eSE": (25_184_128, 25_163_712, 7.075, 246, 45),
    "V-57-eSE": (41_454_912, 41_423_296, 8.935, 360, 66),
    "V-99-eSE": (69_523_520, 69_469_376, 16.495, 626, 115),
}
V1_SIZES = {"V-27-slim": (3_525_736, 2.177), "V-39": (22_600_296, 7.072), "V-57": (36_640_296, 8.930)}


@pytest.mark.parametrize("body", SIZES)
def test_sizes_of_a_body_equal_the_published_ones(body: str) -> None:
    parameters, frozen_parameters, macs, entries, convs = SIZES[body]
    with torch.device("meta"):
        net, frozen = VoVNet(body=body, norm="BN"), VoVNet(body=body)
    assert count(net) == parameters
    assert count(frozen) == frozen_parameters
    assert round(gmacs(net), 3) == macs
    assert len(net.state_dict()) == entries
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == convs


@pytest.mark.parametrize("body", V1_SIZES)
def test_sizes_of_a_version_1_body_equal_the_published_ones(body: str) -> None:
    parameters, macs = V1_SIZES[body]
    with torch.device("meta"):
        net = VoVNet(body=body, norm="BN", out_features=["logits"], num_classes=1000)
    assert count(net) == parameters
    assert round(gmacs(net), 3) == macs


def test_sizes_with_deformable_stages_equal_the_published_ones() -> None:
    with torch.device("meta"):
        net = VoVNet(stage_with_dcn=(False, True, True, True), modulated_dcn=True)
    assert count(net) == 26_937_315
    assert sum("conv_offset.weight" in name for name in net.state_dict()) == 25


def test_every_block_of_version_2_has_a_gate_unless_only_the_last_is_wanted() -> None:
    def gates(**options: object) -> int:
        with torch.device("meta"):
            net = VoVNet(body="V-99-eSE", **options)
        return sum(isinstance(m, EffectiveSqueezeExcitation) for m in net.modules())

    assert gates() == 16
    assert gates(ese_last_only=True) == 16 - 12  # timm has 12 fewer


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("vovnet_V_19_slim_dw_eSE", "V-19-slim-dw-eSE"),
        ("vovnet_V_19_dw_eSE", "V-19-dw-eSE"),
        ("vovnet_V_39_eSE", "V-39-eSE"),
    ],
)
def test_state_dict_has_the_published_names_and_shapes_in_their_order(golden: Path, name: str, body: str) -> None:
    with torch.device("meta"):
        state = VoVNet(body=body, norm="BN").state_dict()
    assert [(key, list(value.shape)) for key, value in state.items()] == reference_keys(golden, name)


@pytest.mark.parametrize(
    ("name", "body"), [("vovnet_V_19_slim_dw_eSE", "V-19-slim-dw-eSE"), ("vovnet_V_39_eSE", "V-39-eSE")]
)
def test_outputs_equal_those_of_the_reference(golden: Path, name: str, body: str) -> None:
    reference = load(golden, f"backbone_{name}")
    state = filled_state(reference_keys(golden, name), gain=2.0)
    assert sum(v.double().abs().sum().item() for v in state.values()) == pytest.approx(reference["weights_abs_sum"])
    net = VoVNet(body=body, out_features=ALL_FEATURES).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        outputs = net(filled_image(*reference["hw"]))
        full = net(filled_image(*reference["full_hw"])) if "full" in reference else {}
    assert list(outputs) == ALL_FEATURES
    for feature, output in outputs.items():
        assert_matches(output, reference["outputs"][feature])
    for feature, output in full.items():
        torch.testing.assert_close(output, reference["full"][feature], rtol=1e-5, atol=1e-4)


def test_logits_of_version_1_equal_those_of_the_reference(golden: Path) -> None:
    reference = load(golden, "backbone_v1_vovnet27_slim")
    net = VoVNet(body="V-27-slim", norm="BN", out_features=["logits"], num_classes=1000).eval()
    state = filled_state(reference_keys(golden, "v1_vovnet27_slim"), gain=2.0)
    net.load_state_dict(state, strict=False)  # counters of batches are not filled
    with torch.no_grad():
        assert_matches(net(filled_image(*reference["hw"]))["logits"], reference["outputs"]["out"])


def test_odd_sides_are_rounded_down_by_the_pools() -> None:
    net = VoVNet(body=SMALL, out_features=ALL_FEATURES).eval()
    with torch.no_grad():
        sizes = [tuple(x.shape[-2:]) for x in net(torch.zeros(1, 3, 225, 333)).values()]
    assert sizes == [(57, 84), (57, 84), (28, 42), (14, 21), (7, 10)]


def test_the_smallest_image_has_29_pixels_and_a_smaller_one_is_refused_clearly() -> None:
    net = VoVNet(body=SMALL).eval()
    assert net(torch.zeros(1, 3, 29, 29))["stage5"].shape[-2:] == (1, 1)
    with pytest.raises(ValueError, match="28x64 px, but its last stage needs at least 29 px"):
        net(torch.zeros(1, 3, 28, 64))
    with pytest.raises(ValueError, match="1x1 px"):
        net(torch.zeros(1, 3, 1, 1))
    assert VoVNet(body=SMALL, out_features=["stage2"]).eval()(torch.zeros(1, 3, 1, 1))["stage2"].shape == (1, 112, 1, 1)


def test_stages_behind_the_last_requested_feature_are_not_built() -> None:
    net = VoVNet(body=SMALL, out_features=["stage4", "stage3"])
    assert not hasattr(net, "stage5")
    assert list(net.output_shape()) == ["stage3", "stage4"]
    assert [s.stride for s in net.output_shape().values()] == [8, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body": "V-38-eSE"}, "no body 'V-38-eSE'. Did you mean 'V-39-eSE'"),
        ({"out_features": ["res5"]}, "no 'res5'"),
        ({"out_features": []}, "OUT_FEATURES of VoVNet is empty"),
        ({"out_features": ["logits"]}, "no 'logits'"),
        ({"out_features": ["stage5"], "num_classes": 10}, "no classifier would be built"),
        ({"body": "V-19-slim-eSE", "norm": "GN"}, "do not divide a layer of 112 channels"),
        ({"norm": "FrozenBn"}, "no norm layer 'FrozenBn'. Did you mean 'FrozenBN'"),
        ({"body": SMALL, "stage_with_dcn": (False, False, False, True)}, "depthwise bodies have no 3x3 convolutions"),
        ({"body": SMALL, "freeze_at": 6}, "6 parts to freeze, but VoVNet has 5"),
        ({"stage_with_dcn": (True,)}, "has 1 values"),
    ],
)
def test_a_wrong_option_is_refused_with_what_to_do(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        VoVNet(**options)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN", "LN", "", lambda c: nn.GroupNorm(16, c)])
def test_every_norm_can_be_chosen(norm: object) -> None:
    net = VoVNet(body="V-19-dw-eSE", norm=norm, out_features=["stage3"]).eval()
    assert net(torch.rand(1, 3, 32, 32))["stage3"].isfinite().all()
    assert (net.stem[0].bias is None) == (norm != "")


def trainable_parts(net: VoVNet) -> list[str]:
    return [part for part in ALL_FEATURES if any(p.requires_grad for p in getattr(net, part).parameters())]


@pytest.mark.parametrize(("freeze_at", "frozen"), [(-1, 0), (0, 0), (1, 1), (2, 2), (5, 5)])
def test_freezing_stops_the_gradients_and_norms_of_the_first_parts_only(freeze_at: int, frozen: int) -> None:
    net = VoVNet(body="V-19-eSE", norm="BN", freeze_at=freeze_at)
    assert trainable_parts(net) == ALL_FEATURES[frozen:]
    for index, part in enumerate(ALL_FEATURES):
        kind = FrozenBatchNorm2d if index < frozen else nn.BatchNorm2d
        norms = [m for m in getattr(net, part).modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))]
        assert norms
        assert all(isinstance(m, kind) for m in norms)


def test_all_norms_can_be_frozen_as_the_published_code_does_once_a_part_is() -> None:
    net = VoVNet(body="V-19-eSE", norm="BN", freeze_at=1, freeze_all_norms=True)
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in net.modules()) == 19
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert trainable_parts(net) == ALL_FEATURES[1:]


def test_freezing_after_weights_were_loaded_keeps_the_function() -> None:
    net = VoVNet(body=SMALL, norm="BN", out_features=["stage3"])
    x = torch.rand(2, 3, 64, 64)
    net.train()(x)  # moves the running statistics
    expected = net.eval()(x)["stage3"]
    torch.testing.assert_close(net.freeze(2).freeze(2)(x)["stage3"], expected)
    assert isinstance(net.stage2[0].concat.norm, FrozenBatchNorm2d)


def test_initial_weights_are_kaiming_normal_with_fan_in() -> None:
    net = VoVNet(body="V-19-eSE")
    assert net.stage2[0].layers[1].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)  # 0.0417
    assert net.stage3[0].ese.fc.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)  # 0.0625


@pytest.mark.parametrize(("modulated", "factor"), [(True, 0.5), (False, 1.0)])
def test_a_deformable_stage_starts_as_the_plain_one_times_its_mask(modulated: bool, factor: float) -> None:
    plain = VoVNet(body="V-19-slim-eSE", norm="", out_features=["stage3"]).eval()
    deformable = VoVNet(
        body="V-19-slim-eSE",
        norm="",
        out_features=["stage3"],
        stage_with_dcn=(False, True, False, False),
        modulated_dcn=modulated,
    ).eval()
    result = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert all("conv_offset" in key for key in result.missing_keys)
    assert not result.unexpected_keys
    x = torch.rand(1, 112, 12, 12)
    first_plain, first_deformable = plain.stage3[0].layers[0], deformable.stage3[0].layers[0]
    with torch.no_grad():
        first_plain.bias.zero_()
        first_deformable.conv.bias.zero_()
        torch.testing.assert_close(first_deformable(x), factor * first_plain(x))


def test_names_translate_back_and_forth_for_every_body() -> None:
    for body, spec in VOVNET_SPECS.items():
        dcn = (False, True, False, True) if not spec.depthwise else (False,) * 4
        with torch.device("meta"):
            net = VoVNet(body=body, norm="BN", stage_with_dcn=dcn, modulated_dcn=True)
        ours = list(net.state_dict(keep_vars=True))
        published = [published_name(name) for name in ours]
        assert len(set(published)) == len(ours)
        assert [module_name(name, {s for s, d in zip((2, 3, 4, 5), dcn) if d}) for name in published] == ours


def test_a_state_dict_round_trips_inside_another_module_under_both_kinds_of_names() -> None:
    def make() -> nn.Module:
        return nn.ModuleDict({"bottom_up": VoVNet(body=SMALL, norm="BN", out_features=["stage3"])})

    source, target = make(), make()
    published = source.state_dict()
    assert "bottom_up.stage3.OSA3_1.conv_reduction.OSA3_1_reduction_0/conv.weight" in published
    assert target.load_state_dict(published).missing_keys == []
    live = source.state_dict(keep_vars=True)
    assert list(live) == published_order(source)
    assert target.load_state_dict(live).unexpected_keys == []
    for name, value in target.named_parameters():
        torch.testing.assert_close(value, dict(source.named_parameters())[name])


def published_order(module: nn.Module) -> list[str]:
    names = {id(t): n for n, t in (*module.named_parameters(), *module.named_buffers())}
    return [names[id(t)] for t in module.state_dict(keep_vars=True).values()]


def test_what_is_missing_or_unexpected_is_reported() -> None:
    net = VoVNet(body=SMALL, out_features=["stage2"])
    state = net.state_dict()
    del state["stem.stem_1/conv.weight"]
    state["stage3.OSA3_1.concat.OSA3_1_concat/conv.weight"] = torch.zeros(1)
    result = net.load_state_dict(state, strict=False)
    assert result.missing_keys == ["stem.0.weight"]
    assert result.unexpected_keys == ["stage3.0.concat.weight"]


def test_inference_without_gradients_equals_the_training_path() -> None:
    for body in (SMALL, "V-19-slim-eSE"):
        net = VoVNet(body=body).eval()
        x = torch.rand(2, 3, 65, 96)
        expected = net(x)
        with torch.no_grad():
            for name, value in net(x).items():
                torch.testing.assert_close(value, expected[name].detach(), rtol=1e-5, atol=1e-5)


def test_forward_leaves_its_input_alone() -> None:
    x = torch.randn(1, 3, 64, 64)
    before = x.clone()
    VoVNet(body=SMALL)(x)
    assert torch.equal(x, before)


def test_images_of_other_channel_counts_can_be_read() -> None:
    net = VoVNet(body=SMALL, in_channels=5, out_features=["stem"])
    assert net(torch.rand(1, 5, 32, 32))["stem"].shape == (1, 64, 8, 8)
    with pytest.raises(ValueError, match=r"shape \(5, 32, 32\)"):
        net(torch.rand(5, 32, 32))


def test_counters_that_split_names_at_slashes_work(caplog: pytest.LogCaptureFixture) -> None:
    from fvcore.nn import FlopCountAnalysis

    net = VoVNet(body=SMALL).eval()
    with caplog.at_level(logging.CRITICAL):
        flops = FlopCountAnalysis(net, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False)
        assert flops.by_module()["stage5.0.concat"] > 0
    assert flops.by_operator()["conv"] > 0
