"""What every backbone must do, whatever its family: train under a detector, survive odd inputs, be importable alone."""

from __future__ import annotations

import copy

from d2_ext.modeling.backbone import DetNet, LevelFPN, MogaNet, VoVNet

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .test_pyramids import FEATURES, make_cfg

TRUNKS = {
    "vovnet": lambda **options: VoVNet(body="V-19-slim-dw-eSE", **options),
    "vovnet-dense": lambda **options: VoVNet(body="V-19-slim-eSE", **options),
    "detnet": lambda **options: DetNet(**options),
    "moganet": lambda **options: MogaNet(arch="xtiny", **options),
}

# What comes behind these stages repeats their blocks; a graph of all of them takes several times as long.
WITH_ALL_BLOCKS = {
    "vovnet": ["stage2", "stage3"],
    "vovnet-dense": ["stage2", "stage3"],
    "detnet": ["stage4", "stage5"],
    "moganet": ["stage1", "stage2"],
}


def retinanet(family: str, norm: str = "BN") -> nn.Module:
    cfg = make_cfg(f"build_retinanet_{family}_fpn_backbone", FEATURES[family][1:])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [48], [64], [96]]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL[family.upper()].NORM = norm
    return build_model(cfg)


def images(count: int = 2, side: int = 64) -> list[dict]:
    """Grey images with one bright square each, (side, side) px."""
    records = []
    for index in range(count):
        image = torch.full((3, side, side), 100.0) + 10 * torch.randn(3, side, side)
        x, y, size = 8 + 20 * index, 16, 32
        image[:, y : y + size, x : x + size] += 120
        instances = Instances((side, side))
        instances.gt_boxes = Boxes(torch.tensor([[x, y, x + size, y + size]], dtype=torch.float32))
        instances.gt_classes = torch.zeros(1, dtype=torch.int64)
        records.append({"image": image, "instances": instances, "height": side, "width": side})
    return records


@pytest.mark.parametrize("family", ["vovnet", "detnet", "moganet"])
def test_it_trains_under_retinanet_and_gradients_reach_every_parameter(family: str) -> None:
    model = retinanet(family).train()
    untrained = copy.deepcopy(model)  # sees the same moving average of the number of positives in its loss
    batch = images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(12):
        with EventStorage():
            loss = sum(model(batch).values())
            with torch.no_grad():
                loss_untrained = sum(untrained(batch).values())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
            assert untouched == []
        optimizer.step()
    assert loss < 0.7 * loss_untrained


@pytest.mark.parametrize("side", [1, 29, 75])
@pytest.mark.parametrize("family", ["vovnet", "detnet", "moganet"])
def test_a_detector_takes_images_of_any_size(family: str, side: int) -> None:
    model = retinanet(family).eval()
    image = {"image": torch.zeros(3, side, side), "height": side, "width": side}
    with torch.no_grad():
        assert model([image])[0]["instances"].image_size == (side, side)


@pytest.mark.parametrize("name", TRUNKS)
def test_channels_last_gives_the_same_features(name: str) -> None:
    trunk = TRUNKS[name]().eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = trunk(x)
        outputs = copy.deepcopy(trunk).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for feature, output in outputs.items():
        assert output.is_contiguous(memory_format=torch.channels_last)
        size = expected[feature].abs().max().item()
        torch.testing.assert_close(output, expected[feature], rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("name", TRUNKS)
def test_bfloat16_autocast_gives_nearly_the_same_features_and_trains(name: str) -> None:
    trunk = TRUNKS[name](norm="BN").eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = trunk(x)
    for feature, expected in trunk(x).items():
        assert (outputs[feature].float() - expected).norm() < 0.05 * expected.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(o.float().square().mean() for o in trunk.train()(x).values())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in trunk.parameters())


def test_deformable_stages_run_under_autocast_and_get_gradients() -> None:
    trunk = VoVNet(body="V-19-slim-eSE", norm="BN", stage_with_dcn=(False, False, False, True), modulated_dcn=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trunk(torch.rand(2, 3, 64, 64))["stage5"].float().square().mean().backward()
    offsets = trunk.stage5[0].layers[0].conv_offset
    assert offsets.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trace_works_on_other_sizes(name: str) -> None:
    trunk = TRUNKS[name]().eval().requires_grad_(False)
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: tuple(trunk(x).values()), torch.rand(1, 3, 64, 64), check_trace=False)
        x = torch.rand(2, 3, 96, 64)
        for output, expected in zip(traced(x), trunk(x).values(), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", TRUNKS)
def test_it_can_be_exported_and_captured_as_one_graph(name: str) -> None:
    trunk = TRUNKS[name](out_features=WITH_ALL_BLOCKS[name]).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = trunk(x)
        exported = torch.export.export(trunk, (x,)).module()(x)
        compiled = torch.compile(trunk, backend="eager", fullgraph=True)(x)
    for feature, value in expected.items():
        torch.testing.assert_close(exported[feature], value)
        torch.testing.assert_close(compiled[feature], value)


def test_it_is_built_from_explicit_arguments_or_from_a_config_alike() -> None:
    cfg = make_cfg("build_vovnet_backbone", [])
    cfg.MODEL.VOVNET.OUT_FEATURES = ["stage3"]
    from_config = VoVNet(cfg, ShapeSpec(channels=3))
    explicit = VoVNet(body="V-19-slim-dw-eSE", out_features=["stage3"])
    assert str(from_config) == str(explicit)
    assert str(VoVNet(cfg, ShapeSpec(channels=3), out_features=["stage2"])) != str(explicit)  # arguments win


@pytest.mark.stock
def test_lazy_configs_build_it(detectron2_kind: str) -> None:
    if detectron2_kind != "stock":
        pytest.skip("the stand-in has no lazy configs; install Detectron2 to run this")
    from detectron2.config import LazyCall, instantiate

    lazy = LazyCall(LevelFPN)(
        bottom_up=LazyCall(DetNet)(out_features=["stage3", "stage4", "stage5", "stage6"], norm="BN"),
        in_features="${.bottom_up.out_features}",
        out_channels=8,
    )
    lazy.bottom_up.narrow = True
    pyramid = instantiate(lazy)
    assert pyramid.bottom_up.stage6[0].conv3.out_channels == 256
    assert list(pyramid.output_shape()) == ["p3", "p4", "p5", "p6"]


def test_a_config_without_our_keys_tells_nothing_about_other_packages() -> None:
    assert isinstance(get_cfg(), CfgNode)
    assert "VOVNET" not in get_cfg().MODEL  # keys are added by add_d2_ext_config, not by an import


def test_features_do_not_alias_each_other_or_the_input() -> None:
    for make in TRUNKS.values():
        trunk = make().eval()
        with torch.no_grad():
            outputs: list[Tensor] = list(trunk(torch.rand(1, 3, 64, 64)).values())
        assert len({o.untyped_storage().data_ptr() for o in outputs}) == len(outputs)
