"""Weights of torchvision's ResNets: the same features from Detectron2's, and loading without conversion."""

from __future__ import annotations

import logging
from pathlib import Path

import d2_ext
from d2_ext.checkpoint import convert
from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.errors import CheckpointError

import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone


def config(depth: int) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p6p7_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return cfg


def torchvision_resnet(depth: int) -> torch.nn.Module:
    """With random statistics, so that a mix-up shows."""
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_features_are_those_of_torchvision(depth: int) -> None:
    theirs = torchvision_resnet(depth)
    ours = build_resnet_backbone(config(depth), ShapeSpec(channels=3)).eval()
    converted = convert(theirs.state_dict(), source="torchvision")
    result = ours.load_state_dict(converted, strict=False)
    assert result.missing_keys == []
    assert {k for k in result.unexpected_keys if not k.endswith("num_batches_tracked")} == {
        "linear.weight",
        "linear.bias",
    }
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = ours(x)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage in (1, 2, 3, 4):
            x = getattr(theirs, f"layer{stage}")(x)
            if stage > 1:
                torch.testing.assert_close(features[f"res{stage + 1}"], x, rtol=1e-4, atol=1e-4)


def test_with_a_config_the_trunk_lies_in_the_detector(caplog: pytest.LogCaptureFixture) -> None:
    state = torchvision_resnet(18).state_dict()
    with caplog.at_level(logging.WARNING):
        report = convert(state, source="torchvision", cfg=config(18)).report
    assert "backbone.bottom_up.res5.1.conv2.norm.running_var" in report.matched
    assert [k.split(".")[-2] for k in report.unexpected] == ["linear", "linear"]
    assert all(k.startswith(("backbone.fpn_", "backbone.top_block.", "head.")) for k in report.missing)
    assert not caplog.records


def test_inputs_and_strides_that_do_not_fit_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(50)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.INPUT.FORMAT = True, "BGR"
    with caplog.at_level(logging.WARNING):
        convert(torchvision_resnet(50).state_dict(), source="torchvision", cfg=cfg)
    assert "STRIDE_IN_1X1" in caplog.text
    assert "INPUT.FORMAT" in caplog.text


def test_another_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="No ResNet of torchvision"):
        convert({"features.0.weight": torch.zeros(1)}, source="torchvision")


def test_training_can_start_from_a_file_as_torchvision_publishes_it(tmp_path: Path) -> None:
    state = torchvision_resnet(18).state_dict()
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    model = build_model(config(18))
    SafeCheckpointer(model).load(str(tmp_path / "resnet18-f37072fd.pth"))
    loaded = model.backbone.bottom_up.state_dict()
    assert torch.equal(loaded["res4.0.shortcut.weight"], state["layer3.0.downsample.0.weight"])
    assert torch.equal(loaded["stem.conv1.norm.running_mean"], state["bn1.running_mean"])


def test_a_model_with_torchvisions_names_is_left_alone(tmp_path: Path) -> None:
    state = torchvision_resnet(18).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    model = torchvision.models.resnet18(weights=None)
    SafeCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
