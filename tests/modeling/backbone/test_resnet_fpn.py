"""ResNet-FPN with P6, P7 and frozen batch-norm statistics."""

from __future__ import annotations

from pathlib import Path

import d2_ext
from d2_ext.errors import ConfigError
from d2_ext.modeling.backbone.frozen_stats_norm import FrozenStatsBatchNorm2d, freeze_statistics

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, build_backbone, build_resnet_backbone
from torch import nn

from helpers.golden import assert_matches, filled_image, filled_state, load, reference_keys


def config(*options: object) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p6p7_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "FrozenStatsBN"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.merge_from_list(list(options))
    return cfg


def test_resnet_18_gives_the_reference_outputs_under_its_keys(golden: Path) -> None:
    reference = load(golden, "backbone_d2_r18")
    keys = reference_keys(golden, "d2_r18")
    cfg = config("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.OUT_FEATURES", list(reference["outputs"]))
    net = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    expected = [(key, shape) for key, shape in keys if not key.endswith("num_batches_tracked")]
    assert [(key, list(value.shape)) for key, value in net.state_dict().items()] == expected
    net.load_state_dict(filled_state(keys, reference["gain"]))
    with torch.no_grad():
        outputs = net(filled_image(*reference["hw"]))
    for feature, output in outputs.items():
        assert_matches(output, reference["outputs"][feature])


def build(*options: object) -> FPN:
    return build_backbone(config(*options))


def test_strides_and_sizes_of_the_levels() -> None:
    backbone = build()
    assert {k: (v.channels, v.stride) for k, v in backbone.output_shape().items()} == {
        f"p{i}": (32, 2**i) for i in range(3, 8)
    }
    sizes = {k: tuple(v.shape[2:]) for k, v in backbone(torch.zeros(1, 3, 64, 96)).items()}
    assert sizes == {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)}


@pytest.mark.parametrize(("source", "relu"), [("res5", False), ("p5", True)])
def test_p6_and_p7_come_from_where_the_config_says(source: str, relu: bool) -> None:
    backbone = build("MODEL.FPN.P6_IN_FEATURE", source, "MODEL.FPN.P7_RELU", relu).eval()
    top = backbone.top_block
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        out = backbone(x)
        start = backbone.bottom_up(x)["res5"] if source == "res5" else out["p5"]
        p6 = top.p6(start)
        torch.testing.assert_close(out["p6"], p6)
        torch.testing.assert_close(out["p7"], top.p7(F.relu(p6) if relu else p6))
        assert not torch.allclose(top.p7(p6), top.p7(F.relu(p6)))


def test_an_unknown_source_of_p6_is_refused() -> None:
    with pytest.raises(ConfigError, match="MODEL.FPN.P6_IN_FEATURE is 'res4'"):
        build("MODEL.FPN.P6_IN_FEATURE", "res4")


def test_pyramid_starts_from_xavier_uniform_weights() -> None:
    backbone = build()
    # lateral of res3: 128 -> 32 channels, 1x1: bound sqrt(6 / 160)
    bound = (6 / 160) ** 0.5
    assert 0.98 * bound < backbone.fpn_lateral3.weight.abs().max().item() <= bound
    assert not backbone.fpn_lateral3.bias.any()
    assert backbone.bottom_up.stem.conv1.weight.std() > 0


def test_only_the_affine_part_beyond_the_frozen_stages_learns() -> None:
    backbone = build("MODEL.BACKBONE.FREEZE_AT", 2).train()
    norms = {k: m for k, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 15  # res3, res4, res5: 5 each
    assert all(isinstance(m, FrozenStatsBatchNorm2d) and not m.training for m in norms.values())
    before = {k: m.running_mean.clone() for k, m in norms.items()}
    sum(f.square().sum() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(torch.equal(m.running_mean, before[k]) for k, m in norms.items())
    assert all(m.weight.grad.abs().sum() > 0 for m in norms.values())
    learning = {k for k, p in backbone.named_parameters() if p.requires_grad}
    assert not any("stem" in k or "res2" in k for k in learning)
    assert "bottom_up.res3.0.shortcut.norm.weight" in learning


def test_checkpoint_keys_are_those_of_ordinary_batch_norm() -> None:
    keys = set(build().state_dict())
    assert keys == set(build("MODEL.RESNETS.NORM", "BN").state_dict())
    assert {"bottom_up.res3.0.conv1.norm.running_var", "fpn_output5.bias", "top_block.p7.weight"} <= keys


def test_frozen_statistics_normalize_by_the_stored_values() -> None:
    plain = nn.BatchNorm2d(3).eval()
    plain.running_mean.uniform_(-1, 1)
    plain.running_var.uniform_(0.5, 2)
    nn.init.normal_(plain.weight)
    x = torch.randn(4, 3, 5, 5)
    expected = plain(x)
    frozen = freeze_statistics(nn.Sequential(plain)).train()
    assert isinstance(frozen[0], FrozenStatsBatchNorm2d)
    assert frozen[0].weight is plain.weight
    torch.testing.assert_close(frozen(x), expected)
    assert FrozenStatsBatchNorm2d(3)(x).shape == x.shape  # fresh, never told to train or not
