"""Weights of the CEASC code: names there and back, anchors, what is refused."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import d2_ext
from d2_ext.checkpoint import convert
from d2_ext.checkpoint.ceasc import anchor_permutation
from d2_ext.errors import CheckpointError

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor

from helpers.ceasc_golden import permuted, renamed
from helpers.golden import load

WIDTH, CLASSES = 32, 3
RETINA, GFL = ("RetinaNet", "RetinaNetCEASC"), ("GFL", "GFLCEASC")


def config(architecture: str, *options: object) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p6p7_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "FrozenStatsBN"
    cfg.MODEL.FPN.OUT_CHANNELS = WIDTH
    cfg.MODEL.FPN.P7_RELU = False
    cfg.MODEL.CEASC.NORM_GROUPS = 8
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.GFL.NUM_CLASSES = CLASSES
    cfg.INPUT.FORMAT = "RGB"
    if architecture in GFL:
        cfg.MODEL.FPN.P6_IN_FEATURE = "p5"
        cfg.MODEL.CEASC.CLS_BASE = -5.0
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64.0], [128.0], [256.0], [512.0], [1024.0]]
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    else:
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[s, s * 1.26, s * 1.587] for s in (32.0, 64.0, 128.0, 256.0, 512.0)]
    cfg.merge_from_list(list(options))
    return cfg


def convolution(name: str, outputs: int, kernel: int, *, inputs: int = WIDTH, bias: bool = True) -> dict[str, Tensor]:
    shape = {f"{name}.weight": torch.randn(outputs, inputs, kernel, kernel)}
    return shape | ({f"{name}.bias": torch.randn(outputs)} if bias else {})


def batch_norm(name: str, channels: int) -> dict[str, Tensor]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": torch.rand(channels) for leaf in leaves} | {
        f"{name}.num_batches_tracked": torch.tensor(7)
    }


def resnet18(prefix: str) -> dict[str, Tensor]:
    """Names and shapes of torchvision's ResNet-18 without classifier."""
    tensors = convolution(f"{prefix}conv1", 64, 7, inputs=3, bias=False) | batch_norm(f"{prefix}bn1", 64)
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            start = f"{prefix}layer{stage}.{block}"
            tensors |= convolution(f"{start}.conv1", channels, 3, inputs=before, bias=False)
            tensors |= batch_norm(f"{start}.bn1", channels)
            tensors |= convolution(f"{start}.conv2", channels, 3, inputs=channels, bias=False)
            tensors |= batch_norm(f"{start}.bn2", channels)
            if before != channels:
                tensors |= convolution(f"{start}.downsample.0", channels, 1, inputs=before, bias=False)
                tensors |= batch_norm(f"{start}.downsample.1", channels)
            before = channels
    return tensors


def published(architecture: str) -> dict[str, Tensor]:
    """A file of the released code: its names and shapes, random numbers."""
    family = "gfl" if architecture in GFL else "retina"
    sparse = architecture.endswith("CEASC")
    tensors = resnet18("backbone.")
    for level, channels in enumerate((128, 256, 512)):
        tensors |= convolution(f"neck.lateral_convs.{level}.conv", WIDTH, 1, inputs=channels)
    for level in range(5):
        inputs = 512 if level == 3 and family == "retina" else WIDTH
        tensors |= convolution(f"neck.fpn_convs.{level}.conv", WIDTH, 3, inputs=inputs)
    anchors, box = (1, 68) if family == "gfl" else (9, 4)
    for branch, channels in (("cls", anchors * CLASSES), ("reg", anchors * box)):
        for layer in range(4):
            start = f"bbox_head.{branch}_convs.{layer}{'.0' if sparse else ''}"
            has_norm = sparse or family == "gfl"
            tensors |= convolution(f"{start}.conv", WIDTH, 3, bias=sparse or not has_norm)
            if has_norm:
                tensors |= {f"{start}.gn.{leaf}": torch.randn(WIDTH) for leaf in ("weight", "bias")}
        if sparse:
            tensors |= convolution(f"bbox_head.{branch}_pw_convs.0", WIDTH, 1)
            tensors |= convolution(f"bbox_head.{family}_{branch}_mask.0", 1, 3)
        tensors |= convolution(f"bbox_head.{family}_{branch}{'.conv' if sparse else ''}", channels, 3)
    if family == "gfl":
        tensors |= {f"bbox_head.scales.{i}.scale": torch.randn(()) for i in range(5)}
        tensors["bbox_head.integral.project"] = torch.linspace(0, 16, 17)
    return tensors


@pytest.mark.parametrize("architecture", [*RETINA, *GFL])
def test_every_weight_finds_its_place(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    file = published(architecture)
    with caplog.at_level(logging.WARNING):
        converted = convert({"meta": {}, "state_dict": file}, source="ceasc-mmdet", cfg=config(architecture))
    assert (converted.report.missing, converted.report.unexpected, converted.report.misshaped) == ([], [], {})
    loaded = build_model(config(architecture)).load_state_dict(converted, strict=False)
    assert loaded.unexpected_keys == []
    assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    weights = [v for k, v in file.items() if not k.endswith(("num_batches_tracked", "integral.project"))]
    assert len(converted) == len(weights)
    assert sum(v.numel() for v in converted.values()) == sum(v.numel() for v in weights)
    assert not caplog.records


def test_a_file_of_retinanet_ceasc_has_180_entries() -> None:
    assert len(published("RetinaNetCEASC")) == 180


def test_names_of_some_weights() -> None:
    sparse = convert(published("RetinaNetCEASC"), source="ceasc-mmdet")
    file = published("GFL")
    dense = convert(file, source="ceasc-mmdet")
    assert {
        "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.bottom_up.res3.0.shortcut.norm.weight",
        "backbone.fpn_lateral5.bias",
        "backbone.fpn_output3.weight",
        "backbone.top_block.p7.weight",
        "head.cls_tower.layers.3.norm.bias",
        "head.reg_tower.mask_conv.weight",
        "head.reg_tower.predictors.deltas.bias",
    } <= set(sparse)
    assert torch.equal(dense["head.reg_tower.2.weight"], file["bbox_head.reg_convs.2.conv.weight"])
    assert torch.equal(dense["head.reg_tower.2.norm.bias"], file["bbox_head.reg_convs.2.gn.bias"])
    assert dense["head.scales.4.scale"].tolist() == [file["bbox_head.scales.4.scale"].item()]
    retina = convert(published("RetinaNet"), source="ceasc-mmdet")
    assert {"head.cls_subnet.6.weight", "head.bbox_subnet.0.bias", "head.cls_score.bias", "head.bbox_pred.bias"} <= set(
        retina
    )


def test_anchors_go_into_detectron2s_order() -> None:
    assert anchor_permutation() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    # mmdet's anchors of one cell: ratio by ratio, each with its three scales
    scales, ratios = [32.0, 40.0, 50.0], [0.5, 1.0, 2.0]
    theirs = torch.tensor([[s / r**0.5, s * r**0.5] for r in ratios for s in scales])
    ours = next(iter(DefaultAnchorGenerator(sizes=[scales], aspect_ratios=[ratios], strides=[8]).cell_anchors))
    torch.testing.assert_close(ours[:, 2:] - ours[:, :2], theirs[anchor_permutation()])
    file = published("RetinaNetCEASC")
    file["bbox_head.retina_cls.conv.bias"] = torch.arange(9.0).repeat_interleave(CLASSES) * 10 + torch.tensor(
        list(range(CLASSES)) * 9
    )
    bias = convert(file, source="ceasc-mmdet")["head.cls_tower.predictors.logits.bias"]
    assert bias.tolist() == [10.0 * a + k for a in anchor_permutation() for k in range(CLASSES)]


def test_head_weights_are_never_lost_in_silence() -> None:
    cfg = config("RetinaNetCEASC")
    extra = published("RetinaNetCEASC") | {"bbox_head.cls_convs.0.0.depth_wise.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"1 weights of the head .*depth_wise.*--drop-head"):
        convert(extra, source="ceasc-mmdet", cfg=cfg)
    kept = convert(extra, source="ceasc-mmdet", cfg=cfg, drop_head=True)
    assert kept.report.unexpected == ["bbox_head.cls_convs.0.0.depth_wise.weight"]

    other_classes = config("RetinaNetCEASC", "MODEL.RETINANET.NUM_CLASSES", 5)
    with pytest.raises(CheckpointError, match="number of classes"):
        convert(published("RetinaNetCEASC"), source="ceasc-mmdet", cfg=other_classes)
    kept = convert(published("RetinaNetCEASC"), source="ceasc-mmdet", cfg=other_classes, drop_head=True)
    assert set(kept.report.misshaped) == {f"head.cls_tower.predictors.logits.{x}" for x in ("weight", "bias")}
    with pytest.raises(CheckpointError, match="META_ARCHITECTURE"):
        convert(published("RetinaNet"), source="ceasc-mmdet", cfg=cfg)


def test_what_is_missing_is_reported() -> None:
    file = {k: v for k, v in published("GFLCEASC").items() if not re.match(r"bbox_head\.gfl_reg_mask", k)}
    report = convert(file, source="ceasc-mmdet", cfg=config("GFLCEASC")).report
    assert report.missing == ["head.reg_tower.mask_conv.weight", "head.reg_tower.mask_conv.bias"]


def test_other_detectors_are_refused() -> None:
    with pytest.raises(CheckpointError, match="FSAF and Faster R-CNN are not supported"):
        convert({"rpn_head.rpn_cls.weight": torch.zeros(3)}, source="ceasc-mmdet")
    fsaf = published("RetinaNetCEASC")
    for key in ("bbox_head.retina_reg.conv.weight", "bbox_head.retina_cls.conv.weight"):
        fsaf[key] = torch.zeros(4, WIDTH, 3, 3)
    with pytest.raises(CheckpointError, match="1 anchors a position"):
        convert(fsaf, source="ceasc-mmdet")
    gfl = published("GFL") | {"bbox_head.integral.project": torch.linspace(0, 8, 17)}
    with pytest.raises(CheckpointError, match="mean something else"):
        convert(gfl, source="ceasc-mmdet")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.FPN.P6_IN_FEATURE", "res5"),
        ("MODEL.FPN.P7_RELU", True),
        ("MODEL.CEASC.CLS_BASE", -8.0),
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
    ],
)
def test_settings_that_no_shape_shows_are_compared(key: str, value: object, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config("GFLCEASC", key, value)
    file = published("GFLCEASC")
    if value == "res5":
        file["neck.fpn_convs.3.conv.weight"] = torch.randn(WIDTH, 512, 3, 3)
    with caplog.at_level(logging.WARNING):
        convert(file, source="ceasc-mmdet", cfg=cfg)
    assert key in caplog.text
    assert "set it so" in caplog.text


def test_the_golden_head_converts(golden: Path) -> None:
    weights = load(golden, "ceasc_retina_weights")["state_dict"]
    converted = convert({f"bbox_head.{k}": v for k, v in weights.items()}, source="ceasc-mmdet")
    assert set(converted) == {f"head.{renamed(k)}" for k in weights}
    for key, value in weights.items():
        assert torch.equal(converted[f"head.{renamed(key)}"], permuted(key, value))
