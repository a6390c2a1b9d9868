from __future__ import annotations

import logging

from d2_ext import add_d2_ext_config
from d2_ext.errors import ConfigError
from d2_ext.modeling.backbone import DetNet, LevelFPN, TopBlock, VoVNet
from d2_ext.modeling.backbone.registration import _OURS, PREFIX, register_backbone

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7

DETNET_STAGES = ["stage2", "stage3", "stage4", "stage5", "stage6"]
FEATURES = {
    "vovnet": ["stage2", "stage3", "stage4", "stage5"],
    "moganet": ["stage1", "stage2", "stage3", "stage4"],
    "detnet": DETNET_STAGES,
}


def make_cfg(name: str, in_features: list[str], top_levels: int = 2) -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    if "FCOS" not in cfg.MODEL:
        cfg.MODEL.FCOS = CfgNode()
    cfg.MODEL.FPN.TOP_LEVELS = top_levels
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.VOVNET.CONV_BODY = "V-19-slim-dw-eSE"
    cfg.MODEL.MOGANET.ARCH = "xtiny"
    cfg.MODEL.FPN.IN_FEATURES = in_features
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


@pytest.mark.parametrize("family", ["vovnet", "moganet", "detnet"])
def test_trunks_can_be_built_by_name(family: str) -> None:
    backbone = build_backbone(make_cfg(f"build_{family}_backbone", []))
    assert list(backbone.output_shape()) == FEATURES[family]


@pytest.mark.parametrize(
    ("name", "skip", "top_levels", "strides"),
    [
        ("build_vovnet_fpn_backbone", 0, 2, {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
        ("build_retinanet_vovnet_fpn_backbone", 1, 2, {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("build_fcos_vovnet_fpn_backbone", 1, 2, {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("build_fcos_vovnet_fpn_backbone", 1, 1, {"p3": 8, "p4": 16, "p5": 32, "p6": 64}),
        ("build_fcos_vovnet_fpn_backbone", 1, 0, {"p3": 8, "p4": 16, "p5": 32}),
        ("build_moganet_fpn_backbone", 0, 2, {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
        ("build_retinanet_moganet_fpn_backbone", 1, 2, {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("build_fcos_moganet_fpn_backbone", 1, 2, {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("build_detnet_fpn_backbone", 0, 2, {"p2": 4, "p3": 8, "p4": 16, "p5": 16, "p6": 16}),
        ("build_retinanet_detnet_fpn_backbone", 1, 2, {"p3": 8, "p4": 16, "p5": 16, "p6": 16, "p7": 32}),
        ("build_fcos_detnet_fpn_backbone", 1, 1, {"p3": 8, "p4": 16, "p5": 16, "p6": 16, "p7": 32}),
        ("build_fcos_detnet_fpn_backbone", 1, 2, {"p3": 8, "p4": 16, "p5": 16, "p6": 16, "p7": 32, "p8": 64}),
    ],
)
def test_levels_have_the_declared_strides(name: str, skip: int, top_levels: int, strides: dict[str, int]) -> None:
    family = name.split("_")[-3]
    backbone = build_backbone(make_cfg(name, FEATURES[family][skip:], top_levels)).eval()
    assert {level: shape.stride for level, shape in backbone.output_shape().items()} == strides
    assert backbone.size_divisibility == (16 if family == "detnet" else 32)
    with torch.no_grad():
        outputs = backbone(torch.zeros(1, 3, 128, 128))
    assert {level: 128 // x.shape[-1] for level, x in outputs.items()} == strides
    assert all(x.shape[1] == 8 for x in outputs.values())


def test_retinanet_form_takes_p6_from_the_trunk_and_fcos_form_from_p5() -> None:
    cfg = make_cfg("build_retinanet_vovnet_fpn_backbone", FEATURES["vovnet"][1:])
    assert build_backbone(cfg).top_block.p6.in_channels == 512
    cfg.MODEL.BACKBONE.NAME = "build_fcos_vovnet_fpn_backbone"
    backbone = build_backbone(cfg)
    assert backbone.top_block.p6.in_channels == 8
    assert {"fpn_lateral3.weight", "fpn_output5.bias", "top_block.p7.weight"} <= set(backbone.state_dict())


@pytest.mark.parametrize("family", ["vovnet", "moganet"])
def test_a_separable_pyramid_is_an_ordinary_one_with_kernels_of_rank_one(family: str) -> None:
    cfg = make_cfg(f"build_fcos_{family}_fpn_backbone", FEATURES[family][1:], 1)
    ordinary = build_backbone(cfg).eval()
    cfg.MODEL.FPN.SEPARABLE = True
    separable = build_backbone(cfg).eval()
    weights = separable.state_dict()
    for level in (3, 4, 5):
        name = f"fpn_output{level}"
        depthwise, pointwise = weights.pop(f"{name}.dw.weight"), weights.pop(f"{name}.pw.weight")
        weights[f"{name}.weight"] = pointwise * depthwise[:, 0]  # (8, 8, 1, 1) * (8, 3, 3)
        weights[f"{name}.bias"] = weights.pop(f"{name}.pw.bias")
    ordinary.load_state_dict(weights)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = separable(image), ordinary(image)
    assert list(found) == ["p3", "p4", "p5", "p6"]
    for level, x in expected.items():
        torch.testing.assert_close(found[level], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("family", ["vovnet", "moganet"])
def test_extra_levels_from_the_trunk_are_detectron2s_with_or_without_the_relu(family: str, relu: bool) -> None:
    cfg = make_cfg(f"build_retinanet_{family}_fpn_backbone", FEATURES[family][1:])
    cfg.MODEL.FPN.P7_RELU = relu
    block = build_backbone(cfg).top_block
    reference = LastLevelP6P7(block.p6.in_channels, 8, in_feature=FEATURES[family][-1])
    assert block.in_feature == reference.in_feature
    bound = (3 / (9 * block.p6.in_channels)) ** 0.5  # Xavier's name, but uniform by fan-in alone
    for conv in (block.p6, reference.p6):
        assert 0.95 * bound < conv.weight.abs().max().item() <= bound
        assert not conv.bias.any()
    reference.load_state_dict(block.state_dict())
    x = torch.randn(1, block.p6.in_channels, 8, 8)
    p6, p7 = reference(x)
    torch.testing.assert_close(block(x)[0], p6)
    torch.testing.assert_close(block(x)[1], p7 if relu else reference.p7(p6))


def test_level_pyramid_equals_detectron2s_where_strides_double() -> None:
    trunk = VoVNet(body="V-19-slim-dw-eSE")
    stock = FPN(trunk, FEATURES["vovnet"], 8, top_block=LastLevelMaxPool()).eval()
    ours = LevelFPN(trunk, FEATURES["vovnet"], 8, top_block=LastLevelMaxPool()).eval()
    assert set(ours.state_dict()) == set(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    assert ours.output_shape() == stock.output_shape()
    x = torch.rand(1, 3, 64, 96)
    expected = stock(x)
    for name, value in ours(x).items():
        torch.testing.assert_close(value, expected[name])


def test_level_pyramid_works_on_odd_sides() -> None:
    pyramid = LevelFPN(VoVNet(body="V-19-slim-dw-eSE"), FEATURES["vovnet"], 8).eval()
    assert [tuple(x.shape[-2:]) for x in pyramid(torch.rand(1, 3, 75, 93)).values()] == [
        (19, 24),
        (9, 12),
        (4, 6),
        (2, 3),
    ]


def test_paper_pyramid_of_detnet_adds_levels_of_stride_16_without_resizing() -> None:
    pyramid = LevelFPN(DetNet(), DETNET_STAGES, 4).eval()
    x = torch.rand(1, 3, 64, 64)
    c = pyramid.bottom_up(x)
    lateral = {k: getattr(pyramid, f"fpn_lateral{k}")(c[f"stage{k}"]) for k in range(2, 7)}
    m6 = lateral[6]
    m5 = lateral[5] + m6
    m4 = lateral[4] + m5
    m3 = lateral[3] + F.interpolate(m4, scale_factor=2.0, mode="nearest")
    m2 = lateral[2] + F.interpolate(m3, scale_factor=2.0, mode="nearest")
    outputs = pyramid(x)
    for level, merged in {2: m2, 3: m3, 4: m4, 5: m5, 6: m6}.items():
        torch.testing.assert_close(outputs[f"p{level}"], getattr(pyramid, f"fpn_output{level}")(merged))


@pytest.mark.parametrize(("mode", "align"), [("bilinear", False), ("bilinear_aligned", True)])
def test_pyramid_of_detnet_pytorch_descends_from_smoothed_levels(mode: str, align: bool) -> None:
    cfg = make_cfg("build_detnet_fpn_backbone", DETNET_STAGES)
    cfg.MODEL.DETNET.FPN_STYLE = "detnet_pytorch"
    cfg.MODEL.DETNET.FPN_UPSAMPLE = mode
    pyramid = build_backbone(cfg).eval()
    x = torch.rand(1, 3, 72, 56)
    c = pyramid.bottom_up(x)

    def up(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=align)

    p6 = pyramid.fpn_lateral6(c["stage6"])
    p5 = pyramid.fpn_lateral5(c["stage5"]) + p6
    p4 = pyramid.fpn_lateral4(c["stage4"]) + p5
    l3, l2 = pyramid.fpn_lateral3(c["stage3"]), pyramid.fpn_lateral2(c["stage2"])
    p3 = pyramid.fpn_output3(l3 + up(p4, l3))
    p2 = pyramid.fpn_output2(l2 + up(p3, l2))
    for output, expected in zip(pyramid(x).values(), (p2, p3, p4, p5, p6), strict=True):
        torch.testing.assert_close(output, expected)
    assert "fpn_output4.weight" not in pyramid.state_dict()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FPN.IN_FEATURES", ["res3"], "IN_FEATURES: .*does not return 'res3'"),
        ("FPN.IN_FEATURES", [], "IN_FEATURES"),
        ("DETNET.FPN_STYLE", "paper", "no style 'paper'. Known: standard, detnet_pytorch"),
        ("DETNET.FPN_UPSAMPLE", "cubic", "no mode 'cubic'"),
        ("FPN.FUSE_TYPE", "avg", "only knows 'sum'"),
        ("FPN.IN_FEATURES", ["stage2", "stage4"], "strides must stay or double"),
    ],
)
def test_a_wrong_pyramid_is_refused_with_what_to_do(key: str, value: object, message: str) -> None:
    cfg = make_cfg("build_detnet_fpn_backbone", DETNET_STAGES)
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=message):
        build_backbone(cfg)


@pytest.mark.parametrize("name", ["build_vovnet_fpn_backbone", "build_retinanet_moganet_fpn_backbone"])
def test_a_wrong_feature_of_a_plain_pyramid_is_refused_too(name: str) -> None:
    with pytest.raises(ConfigError, match=r"IN_FEATURES: .* does not return 'res3'"):
        build_backbone(make_cfg(name, ["res3"]))


def test_a_wrong_number_of_extra_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.TOP_LEVELS is 3"):
        build_backbone(make_cfg("build_fcos_vovnet_fpn_backbone", ["stage3"], top_levels=3))
    assert TopBlock(4, 8, levels=1, in_feature="p5").num_levels == 1


def test_the_older_name_of_the_number_of_levels_means_the_same() -> None:
    cfg = make_cfg("build_fcos_vovnet_fpn_backbone", ["stage4", "stage5"], top_levels=2)
    cfg.MODEL.FCOS.TOP_LEVELS = 1
    assert list(build_backbone(cfg).output_shape()) == ["p4", "p5", "p6"]
    cfg.MODEL.FPN.TOP_LEVELS = 1  # both names agree
    assert list(build_backbone(cfg).output_shape()) == ["p4", "p5", "p6"]
    cfg.MODEL.FPN.TOP_LEVELS = 0
    with pytest.raises(
        ConfigError, match=r"MODEL\.FPN\.TOP_LEVELS is 0, but MODEL\.FCOS\.TOP_LEVELS, its older name, is 1"
    ):
        build_backbone(cfg)
    cfg.MODEL.FPN.TOP_LEVELS, cfg.MODEL.FCOS.TOP_LEVELS = 2, 3
    with pytest.raises(ConfigError, match=r"MODEL\.FCOS\.TOP_LEVELS is 3"):
        build_backbone(cfg)


def test_images_of_other_channel_counts_reach_the_stem() -> None:
    for family in FEATURES:
        backbone = build_backbone(make_cfg(f"build_{family}_backbone", []), ShapeSpec(channels=1)).eval()
        assert len(backbone(torch.zeros(1, 1, 64, 64))) == len(FEATURES[family])


@pytest.fixture
def registry() -> None:
    """Give the registry back as it was."""
    before, ours = dict(BACKBONE_REGISTRY._obj_map), dict(_OURS)
    yield
    BACKBONE_REGISTRY._obj_map.clear()
    BACKBONE_REGISTRY._obj_map.update(before)
    _OURS.clear()
    _OURS.update(ours)


@pytest.mark.usefixtures("registry")
def test_a_package_imported_later_may_register_the_same_name_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = BACKBONE_REGISTRY.get("build_vovnet_fpn_backbone")

    def build_vovnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> None:
        """Stands for the function of the original package."""

    with caplog.at_level(logging.WARNING):
        BACKBONE_REGISTRY.register()(build_vovnet_fpn_backbone)
    assert BACKBONE_REGISTRY.get("build_vovnet_fpn_backbone") is ours
    assert "import its package before d2_ext" in caplog.text
    with pytest.raises(AssertionError):  # names that are not ours still may not come twice
        BACKBONE_REGISTRY._do_register("build_resnet_backbone", build_vovnet_fpn_backbone)


@pytest.mark.usefixtures("registry")
def test_a_package_imported_earlier_keeps_its_name_and_ours_has_a_prefix(caplog: pytest.LogCaptureFixture) -> None:
    def build_other_backbone() -> None:
        """Stands for the function of the original package."""

    def ours() -> None:
        """Stands for ours."""

    ours.__name__ = "build_other_backbone"
    BACKBONE_REGISTRY.register()(build_other_backbone)
    with caplog.at_level(logging.WARNING):
        register_backbone(ours)
    assert BACKBONE_REGISTRY.get("build_other_backbone") is build_other_backbone
    assert BACKBONE_REGISTRY.get(PREFIX + "build_other_backbone") is ours
    assert "the one of d2_ext is 'd2_ext_build_other_backbone'" in caplog.text
