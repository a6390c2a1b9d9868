"""ResNet and FPN: shapes, names, freezing; on either implementation of Detectron2."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone import FPN, BasicStem, BottleneckBlock, ResNet, make_stage
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import Tensor, nn


def resnet_cfg(depth: int = 18, **keys: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    for name, value in keys.items():
        cfg.MODEL.RESNETS[name] = value
    return cfg


def test_each_stage_halves_the_map() -> None:
    net = build_backbone(resnet_cfg(OUT_FEATURES=["stem", "res2", "res4"]))
    maps = net(torch.zeros(1, 3, 64, 96))
    shapes = {k: tuple(v.shape[1:]) for k, v in maps.items()}
    assert shapes == {"stem": (64, 16, 24), "res2": (64, 16, 24), "res4": (256, 4, 6)}
    assert net.output_shape()["res4"] == ShapeSpec(channels=256, stride=16)
    assert not hasattr(net, "res5")  # unused
    assert net.size_divisibility == 0


def test_block_weights_are_named_and_ordered_as_in_checkpoints() -> None:
    names = list(make_stage(BottleneckBlock, 1, in_channels=8, out_channels=16, bottleneck_channels=4)[0].state_dict())
    convs = [n.removesuffix(".weight") for n in names if n.endswith(".weight") and "norm" not in n]
    assert convs == ["shortcut", "conv1", "conv2", "conv3"]
    assert "conv3.norm.running_var" in names
    assert not any("shortcut" in n for n in BasicBlock(8, 8).state_dict())


def test_per_block_arguments_go_to_their_block_and_the_stride_to_the_1x1_or_3x3_convolution() -> None:
    widths = {"in_channels": 4, "out_channels": 8}
    blocks = ResNet.make_stage(BottleneckBlock, 2, **widths, bottleneck_channels=4, stride_per_block=[2, 1])
    assert [b.stride for b in blocks] == [2, 1]
    assert [b.in_channels for b in blocks] == [4, 8]
    with pytest.raises(AssertionError):
        ResNet.make_stage(BasicBlock, 2, **widths, stride_per_block=[2])
    for in_1x1, strides in ((True, [2, 1]), (False, [1, 2])):
        block = BottleneckBlock(4, 8, bottleneck_channels=4, stride=2, stride_in_1x1=in_1x1)
        assert [block.conv1.stride[0], block.conv2.stride[0]] == strides


def test_a_block_adds_its_shortcut() -> None:
    block = BasicBlock(2, 2, norm="")
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(block(x), x.relu())


def test_frozen_stages_do_not_train() -> None:
    cfg = resnet_cfg(NORM="BN", OUT_FEATURES=["res3"])
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    net = build_backbone(cfg)
    assert {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad} == {"res3"}
    assert isinstance(net.stem.conv1.norm, FrozenBatchNorm2d)
    assert isinstance(net.res3[0].conv1.norm, nn.BatchNorm2d)


def test_dilation_takes_the_place_of_the_last_stride_and_small_depths_refuse_what_they_cannot() -> None:
    cfg = resnet_cfg(50, OUT_FEATURES=["res5"], RES5_DILATION=2, WIDTH_PER_GROUP=8, RES2_OUT_CHANNELS=16)
    assert build_backbone(cfg).output_shape()["res5"] == ShapeSpec(channels=128, stride=16)
    for key, value in {"RES2_OUT_CHANNELS": 256, "RES5_DILATION": 2}.items():
        with pytest.raises(AssertionError, match=key):
            build_backbone(resnet_cfg(**{key: value}))


def test_a_classifier_ends_in_a_linear_layer() -> None:
    stages = [make_stage(BasicBlock, 1, in_channels=64, out_channels=64)]
    assert ResNet(BasicStem(), stages, num_classes=5)(torch.zeros(2, 3, 32, 32))["linear"].shape == (2, 5)
    with pytest.raises(AssertionError, match="stem"):
        ResNet(BasicStem(), stages, out_features=["res9"])


class Toy(Backbone):
    """Two maps that are the picture, averaged over 4 and 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self._out_features = ["a", "b"]
        self._out_feature_channels = {"a": 1, "b": 1}
        self._out_feature_strides = {"a": 4, "b": 8}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": nn.functional.avg_pool2d(x, 4), "b": nn.functional.avg_pool2d(x, 8)}


def identity(fpn: FPN) -> FPN:
    """Let every convolution of a one-channel pyramid copy its input."""
    for name, conv in fpn.named_children():
        if name.startswith("fpn_"):
            nn.init.dirac_(conv.weight)
    return fpn


@pytest.mark.parametrize(("fuse", "factor"), [("sum", 1.0), ("avg", 0.5)])
def test_fpn_adds_the_enlarged_upper_map(fuse: str, factor: float) -> None:
    fpn = identity(FPN(Toy(), ["a", "b"], 1, fuse_type=fuse))
    x = torch.rand(1, 1, 16, 16)
    maps, toy = fpn(x), Toy()(x)
    assert list(maps) == ["p2", "p3"]
    torch.testing.assert_close(maps["p3"], toy["b"])
    enlarged = toy["b"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(maps["p2"], factor * (toy["a"] + enlarged))


def test_fpn_registers_its_children_in_checkpoint_order_and_needs_doubled_strides() -> None:
    top = LastLevelMaxPool()
    top.in_feature = "p3"
    fpn = FPN(Toy(), ["a", "b"], 4, top_block=top, square_pad=64)
    children = [n for n, _ in fpn.named_children()]
    assert children == ["fpn_lateral2", "fpn_output2", "fpn_lateral3", "fpn_output3", "top_block", "bottom_up"]
    assert {k: v.stride for k, v in fpn.output_shape().items()} == {"p2": 4, "p3": 8, "p4": 16}
    assert fpn.size_divisibility == 8  # of the backbone, not of the top block
    assert fpn.padding_constraints == {"square_size": 64}
    assert fpn(torch.zeros(1, 1, 24, 24))["p4"].shape == (1, 4, 2, 2)
    assert fpn.fpn_lateral2.bias is not None
    assert FPN(Toy(), ["a", "b"], 32, norm="GN").fpn_lateral2.bias is None
    toy = Toy()
    toy._out_feature_strides["b"] = 16
    with pytest.raises(AssertionError, match="16"):
        FPN(toy, ["a", "b"], 1)


def test_retinanet_pyramid_goes_from_p3_to_p7() -> None:
    cfg = resnet_cfg(OUT_FEATURES=["res3", "res4", "res5"])
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    maps = build_backbone(cfg)(torch.zeros(1, 3, 96, 64))
    sizes = {"p3": (12, 8), "p4": (6, 4), "p5": (3, 2), "p6": (2, 1), "p7": (1, 1)}
    assert {k: tuple(v.shape[1:]) for k, v in maps.items()} == {k: (8, *size) for k, size in sizes.items()}
    names = {"build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"}
    assert all(n in BACKBONE_REGISTRY for n in names)
    assert "RetinaNet" in META_ARCH_REGISTRY
