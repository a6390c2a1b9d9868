from __future__ import annotations

import re
from pathlib import Path

from d2_ext.errors import ConfigError
from d2_ext.modeling.backbone import DetNet

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from helpers.golden import assert_matches, filled_image, filled_state, load, reference_keys
from helpers.network_sizes import count, gmacs

ALL_FEATURES = ["stem", "stage2", "stage3", "stage4", "stage5", "stage6"]


def our_name(key: str) -> str:
    """Names of the reference in our words; written apart from the converter, which has its own test."""
    key = re.sub(r"bn(\d)", r"conv\1.norm", key)
    key = re.sub(r"^conv1", "stem.conv1", key)
    key = re.sub(r"(?:downsample|extra_conv)\.0", "shortcut", key)
    key = re.sub(r"(?:downsample|extra_conv)\.1", "shortcut.norm", key)
    return re.sub(r"layer(\d)", lambda match: f"stage{int(match[1]) + 1}", key)


@pytest.mark.parametrize(
    ("options", "parameters", "macs"),
    [
        ({}, 17_347_648, 4.999),
        ({"stride_in_1x1": True}, 17_347_648, 4.845),  # the paper's 4.8 GFLOPs
        ({"narrow": True}, 13_403_200, 4.228),
        ({"narrow": True, "stride_in_1x1": True}, 13_403_200, 4.074),
    ],
)
def test_sizes_of_each_reading_of_the_paper(options: dict, parameters: int, macs: float) -> None:
    with torch.device("meta"):
        net = DetNet(norm="BN", **options)
    assert count(net) == parameters
    assert round(gmacs(net), 3) == macs


def test_sizes_of_the_classifier() -> None:
    with torch.device("meta"):
        net = DetNet(norm="BN", out_features=["logits"], num_classes=1000)
    assert count(net) == 18_372_648
    assert len(net.state_dict()) == 380


def test_state_dict_has_the_reference_shapes_under_our_names(golden: Path) -> None:
    with torch.device("meta"):
        state = DetNet(norm="BN", out_features=["logits"], num_classes=1000).state_dict()
    expected = {our_name(key): shape for key, shape in reference_keys(golden, "detnet59_cls")}
    assert {key: list(value.shape) for key, value in state.items()} == expected


def test_features_equal_those_of_the_reference(golden: Path) -> None:
    reference = load(golden, "backbone_detnet59_feats")
    state = filled_state(reference_keys(golden, "detnet59_cls"), gain=2.0)
    net = DetNet().eval()
    assert net.load_state_dict({our_name(k): v for k, v in state.items()}, strict=False).missing_keys == []
    with torch.no_grad():
        outputs = net(filled_image(*reference["hw"]))
    for output, expected in zip(outputs.values(), reference["outputs"].values(), strict=True):
        assert_matches(output, expected)


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((256, 320), [(64, 80), (64, 80), (32, 40), (16, 20), (16, 20), (16, 20)]),
        ((75, 99), [(19, 25), (19, 25), (10, 13), (5, 7), (5, 7), (5, 7)]),
        ((1, 1), [(1, 1)] * 6),
        ((29, 29), [(8, 8), (8, 8), (4, 4), (2, 2), (2, 2), (2, 2)]),
    ],
)
def test_strides_end_at_16_for_any_size(size: tuple[int, int], sides: list[tuple[int, int]]) -> None:
    net = DetNet(out_features=ALL_FEATURES).eval()
    with torch.no_grad():
        outputs = net(torch.zeros(1, 3, *size))
    assert [tuple(x.shape[-2:]) for x in outputs.values()] == sides
    assert [s.stride for s in net.output_shape().values()] == [4, 4, 8, 16, 16, 16]
    assert [s.channels for s in net.output_shape().values()] == [64, 256, 512, 1024, 1024, 1024]


def test_blocks_that_open_the_dilated_stages_project_their_shortcut_though_shapes_agree() -> None:
    with torch.device("meta"):
        for net in (DetNet(), DetNet(narrow=True)):
            for stage in (net.stage5, net.stage6):
                assert [block.shortcut is not None for block in stage] == [True, False, False]
                assert all(b.conv2.dilation == (2, 2) and b.conv2.padding == (2, 2) for b in stage)


def test_stages_behind_the_last_requested_feature_are_not_built() -> None:
    net = DetNet(out_features=["stage3"])
    assert not hasattr(net, "stage4")
    with pytest.raises(ConfigError, match="no 'res4'"):
        DetNet(out_features=["res4"])


@pytest.mark.parametrize("norm", ["BN", "GN", "", lambda c: nn.GroupNorm(1, c)])
def test_batch_group_one_group_and_no_norm_can_be_chosen(norm: object) -> None:
    net = DetNet(norm=norm, out_features=["stage3"])
    assert net(torch.rand(2, 3, 32, 32))["stage3"].isfinite().all()


def test_freezing_covers_the_first_parts_only() -> None:
    net = DetNet(norm="BN", freeze_at=2)
    for part in ALL_FEATURES:
        frozen = part in ("stem", "stage2")
        assert all(p.requires_grad != frozen for p in getattr(net, part).parameters())
        assert any(isinstance(m, FrozenBatchNorm2d) for m in getattr(net, part).modules()) == frozen
    with pytest.raises(ConfigError, match="7 parts to freeze, but DetNet has 6"):
        net.freeze(7)


def test_initial_weights_are_normal_with_fan_out() -> None:
    weight = DetNet(out_features=["stage5"]).stage5[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
