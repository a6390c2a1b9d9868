from __future__ import annotations

import logging
from pathlib import Path

from d2_ext import add_d2_ext_config
from d2_ext.checkpoint import SOURCES, convert
from d2_ext.errors import CheckpointError
from d2_ext.modeling.backbone import DetNet, MogaNet, VoVNet
from d2_ext.modeling.backbone.vovnet_names import module_name

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from helpers.golden import reference_keys

VOVNET_FEATURES = ["stage3", "stage4", "stage5"]


def retinanet_cfg(family: str = "vovnet", in_features: list[str] | None = None) -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = f"build_retinanet_{family}_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.IN_FEATURES = in_features or VOVNET_FEATURES
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.VOVNET.CONV_BODY = "V-19-slim-dw-eSE"
    cfg.MODEL.MOGANET.ARCH = "xtiny"
    return cfg


def random_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.rand_like(value.float()).to(value.dtype) for key, value in state.items()}


def assert_loads(trunk: torch.nn.Module, state: dict[str, Tensor], *, left_over: tuple[str, ...] = ()) -> None:
    result = trunk.load_state_dict(state, strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys == list(left_over)


# ------------------------------------------------------------------------------------------------ VoVNet


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up.", "module.backbone.bottom_up.", "backbone."])
def test_trunks_of_the_authors_fit_ours_whatever_their_prefix(prefix: str) -> None:
    source = VoVNet(body="V-19-slim-dw-eSE", norm="BN")
    published = {prefix + key: value for key, value in random_like(source.state_dict()).items()}
    converted = convert(published, source="vovnet")
    assert list(converted) == [key for key in source.state_dict() if not key.endswith("num_batches_tracked")]
    VoVNet(body="V-19-slim-dw-eSE").load_state_dict(converted)  # strictly: frozen norms have no counters of batches
    VoVNet(body="V-19-slim-dw-eSE", norm="BN").load_state_dict(converted)
    assert not converted.report.compared
    assert "not compared" in converted.report.summary()


def test_a_published_trunk_loads_into_a_detector_without_conversion(tmp_path: Path) -> None:
    cfg = retinanet_cfg()
    model = build_model(cfg)
    trunk = random_like(VoVNet(body="V-19-slim-dw-eSE", norm="BN").state_dict())
    path = tmp_path / "vovnet19_ese_slim_dw_detectron2.pth"
    torch.save({f"backbone.bottom_up.{key}": value for key, value in trunk.items()}, path)
    DetectionCheckpointer(model).load(str(path))
    for name, value in model.backbone.bottom_up.state_dict().items():
        torch.testing.assert_close(value, trunk[name], msg=name)


def test_checkpoints_that_we_save_have_the_published_names(tmp_path: Path) -> None:
    model = build_model(retinanet_cfg())
    DetectionCheckpointer(model, save_dir=str(tmp_path)).save("ours")
    saved = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert "backbone.bottom_up.stage5.OSA5_1.concat.OSA5_1_concat/conv.weight" in saved
    other = build_model(retinanet_cfg())
    DetectionCheckpointer(other).load(str(tmp_path / "ours.pth"))
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_with_a_config_names_fit_the_detector_and_the_report_tells_the_rest() -> None:
    cfg = retinanet_cfg()
    trunk = random_like(VoVNet(body="V-19-slim-dw-eSE", norm="BN").state_dict())
    trunk["extra.weight"] = torch.zeros(1)
    trunk["stem.stem_1/conv.weight"] = torch.zeros(64, 4, 3, 3)
    del trunk["stage2.OSA2_1.ese.fc.bias"]
    converted = convert({"model": trunk}, source="vovnet", cfg=cfg)
    report = converted.report
    assert set(converted) == set(report.matched)
    assert all(key.startswith("backbone.bottom_up.") for key in converted)
    assert report.unexpected == ["backbone.bottom_up.extra.weight"]
    assert report.misshaped == {"backbone.bottom_up.stem.stem_1/conv.weight": ((64, 4, 3, 3), (64, 3, 3, 3))}
    in_trunk = [key for key in report.missing if ".bottom_up." in key]
    assert in_trunk == ["backbone.bottom_up.stage2.OSA2_1.ese.fc.bias"]
    assert "head.cls_score.bias" in report.missing
    assert "tensors fit the model" in report.summary()
    assert "missing: " in report.summary()
    assert "4 in backbone.top_block" in report.summary()


def test_a_whole_detector_keeps_its_names() -> None:
    cfg = retinanet_cfg()
    state = build_model(cfg).state_dict()
    assert list(convert(state, source="vovnet")) == list(state)
    report = convert(state, source="vovnet", cfg=cfg).report
    assert (report.missing, report.unexpected, report.misshaped) == ([], [], {})


def test_version_1_classifiers_fit_with_their_classifier() -> None:
    source = VoVNet(body="V-27-slim", norm="BN", out_features=["logits"], num_classes=10)
    converted = convert(source.state_dict(), source="vovnet")
    assert_loads(VoVNet(body="V-27-slim", out_features=["logits"], num_classes=10), converted)
    assert_loads(VoVNet(body="V-27-slim"), converted, left_over=("classifier.weight", "classifier.bias"))


def timm_name(published: str) -> str:
    """Our name in timm's words; written apart from the converter, from the table of correspondences."""
    name = module_name(published)
    name = name.replace("classifier.", "head.fc.")
    if name.startswith("stage"):
        stage, block, rest = name.split(".", 2)
        rest = rest.replace("layers.", "conv_mid.").replace("ese.", "attn.")
        rest = rest.replace("reduction.", "conv_reduction.") if rest.startswith("reduction") else rest
        rest = "conv_" + rest if rest.startswith("concat.") else rest
        name = f"stages.{int(stage[5:]) - 2}.blocks.{block}.{rest}"
    if "pw.norm." in name or ".dw." in name or ".pw." in name:
        return name.replace("pw.norm.", "bn.").replace(".dw.", ".conv_dw.").replace(".pw.", ".conv_pw.")
    if ".norm." in name:
        return name.replace(".norm.", ".bn.")
    parts = name.split(".")
    return name if "attn" in parts or "head" in parts else ".".join([*parts[:-1], "conv", parts[-1]])


@pytest.mark.parametrize("body", ["V-19-slim-dw-eSE", "V-19-dw-eSE", "V-19-slim-eSE"])
def test_weights_of_timm_fit_and_give_the_same_function(body: str) -> None:
    source = VoVNet(body=body, norm="BN", out_features=["stage5"]).eval()
    published = {timm_name(key): value for key, value in source.state_dict().items()}
    assert "stages.3.blocks.0.attn.fc.weight" in published
    assert ("stem.1.conv_dw.weight" in published) == ("dw" in body)
    target = VoVNet(body=body, norm="BN", out_features=["stage5"]).eval()
    assert_loads(target, convert(published, source="vovnet-timm"))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(target(x)["stage5"], source(x)["stage5"])


def test_some_names_of_timm_are_as_documented() -> None:
    names = {
        "stem.0.conv.weight": "stem.stem_1/conv.weight",
        "stem.2.bn.running_var": "stem.stem_3/norm.running_var",
        "stages.1.blocks.0.conv_mid.4.conv.weight": "stage3.OSA3_1.layers.4.OSA3_1_4/conv.weight",
        "stages.3.blocks.1.conv_concat.bn.bias": "stage5.OSA5_2.concat.OSA5_2_concat/norm.bias",
        "stages.3.blocks.1.attn.fc.bias": "stage5.OSA5_2.ese.fc.bias",
        "head.fc.weight": "classifier.weight",
    }
    state = {name: torch.full((1,), float(i)) for i, name in enumerate(names)}
    assert {k: v.item() for k, v in convert(state, source="vovnet-timm").items()} == {
        ours: float(i) for i, ours in enumerate(names.values())
    }


def test_gates_in_other_blocks_than_the_configs_are_refused_with_the_switch_to_set() -> None:
    cfg = retinanet_cfg()
    cfg.MODEL.VOVNET.CONV_BODY = "V-39-eSE"
    with torch.device("meta"):
        timm_like = VoVNet(ese_last_only=True, norm="BN").state_dict()
        authors = VoVNet(norm="BN").state_dict()
    with pytest.raises(
        CheckpointError, match=r"gates in 4 blocks.*has them in 6. Set MODEL.VOVNET.ESE_LAST_ONLY to True"
    ):
        convert({timm_name(k): v for k, v in timm_like.items()}, source="vovnet-timm", cfg=cfg)
    cfg.MODEL.VOVNET.ESE_LAST_ONLY = True
    with pytest.raises(CheckpointError, match=r"Set MODEL.VOVNET.ESE_LAST_ONLY to False"):
        convert(authors, source="vovnet", cfg=cfg)
    cfg.MODEL.VOVNET.CONV_BODY = "V-57"
    with pytest.raises(CheckpointError, match=r"Check MODEL.VOVNET.CONV_BODY"):
        convert(authors, source="vovnet", cfg=cfg)


# ------------------------------------------------------------------------------------------------ DetNet


def test_imagenet_weights_of_detnet_fill_the_classifier(golden: Path) -> None:
    published = {key: torch.rand(shape) for key, shape in reference_keys(golden, "detnet59_cls")}
    converted = convert(published, source="detnet")
    classifier = DetNet(norm="BN", out_features=["logits"], num_classes=1000)
    assert classifier.load_state_dict(converted).missing_keys == []
    assert torch.equal(classifier.stage5[0].shortcut.weight, published["layer4.0.extra_conv.0.weight"])
    assert torch.equal(classifier.stage4[5].conv2.norm.bias, published["layer3.5.bn2.bias"])
    assert torch.equal(classifier.stage2[0].shortcut.norm.weight, published["layer1.0.downsample.1.weight"])
    assert torch.equal(classifier.stem.conv1.norm.weight, published["bn1.weight"])


def test_a_resnet_50_of_torchvision_fills_the_first_four_stages() -> None:
    from torchvision.models import resnet50

    state = {k: v for k, v in resnet50().state_dict().items() if not k.startswith(("layer4", "fc"))}
    trunk = DetNet(norm="BN", out_features=["stage4"])
    assert trunk.load_state_dict(convert(state, source="detnet")).missing_keys == []


def test_detectors_of_detnet_fill_trunk_and_pyramid(golden: Path) -> None:
    keys = reference_keys(golden, "detnet59_cls")
    trunk = {key: torch.rand(shape) for key, shape in keys if not key.startswith("fc.")}
    published = {}
    for key, value in trunk.items():
        layer, _, rest = key.partition(".")
        stem = {"conv1": "RCNN_layer0.0", "bn1": "RCNN_layer0.1"}.get(layer)
        published[f"{stem}.{rest}" if stem else f"RCNN_{layer}.0.{rest}"] = value
    for name, channels in (("toplayer", 1024), ("latlayer1", 1024), ("latlayer2", 1024)):
        published |= {f"RCNN_{name}.weight": torch.rand(256, channels, 1, 1), f"RCNN_{name}.bias": torch.rand(256)}
    for name, channels in (("latlayer3", 512), ("latlayer4", 256)):
        published |= {f"RCNN_{name}.weight": torch.rand(256, channels, 1, 1), f"RCNN_{name}.bias": torch.rand(256)}
    for name in ("smooth1", "smooth2"):
        published |= {f"RCNN_{name}.weight": torch.rand(256, 256, 3, 3), f"RCNN_{name}.bias": torch.rand(256)}
    published["RCNN_rpn.RPN_Conv.weight"] = torch.rand(1)
    cfg = retinanet_cfg("detnet", ["stage2", "stage3", "stage4", "stage5", "stage6"])
    cfg.MODEL.BACKBONE.NAME = "build_detnet_fpn_backbone"
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    cfg.MODEL.DETNET.FPN_STYLE = "detnet_pytorch"
    converted = convert({"model": published}, source="detnet", cfg=cfg)
    assert converted.report.unexpected == ["RCNN_rpn.RPN_Conv.weight"]
    assert converted.report.misshaped == {}
    assert not [key for key in converted.report.missing if key.startswith("backbone.")]
    assert torch.equal(converted["backbone.fpn_output3.bias"], published["RCNN_smooth1.bias"])
    assert torch.equal(converted["backbone.fpn_lateral2.weight"], published["RCNN_latlayer4.weight"])


# ------------------------------------------------------------------------------------------------ MogaNet


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
def test_weights_of_moganet_fit_in_every_wrapper(prefix: str) -> None:
    source = MogaNet(arch="xtiny", out_features=["logits"], num_classes=10)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    converted = convert({"arch": "moganet", "state_dict": state, "metric": 1.0}, source="moganet")
    assert source.load_state_dict(converted).missing_keys == []
    assert_loads(MogaNet(arch="xtiny"), converted, left_over=("head.weight", "head.bias"))


def test_a_moganet_detector_gets_the_trunk_and_reports_the_classifier() -> None:
    cfg = retinanet_cfg("moganet", ["stage2", "stage3", "stage4"])
    state = MogaNet(arch="xtiny", out_features=["logits"], num_classes=10).state_dict()
    report = convert(state, source="moganet", cfg=cfg).report
    assert report.unexpected == ["backbone.bottom_up.head.weight", "backbone.bottom_up.head.bias"]
    assert not [key for key in report.missing if ".bottom_up." in key]


# ------------------------------------------------------------------------------------------------ dispatch


def test_arrays_become_tensors() -> None:
    state = {"conv1.weight": np.ones((64, 3, 7, 7), dtype=np.float32)}
    assert torch.equal(convert(state, source="detnet")["stem.conv1.weight"], torch.ones(64, 3, 7, 7))


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_of_another_network_is_refused_with_examples_of_names(source: str) -> None:
    if SOURCES[source].needs_cfg:
        with pytest.raises(CheckpointError, match="without a config"):
            convert({}, source=source)
        return
    with pytest.raises(CheckpointError, match=r"look like res2.0.conv1.weight.*Expected names such as"):
        convert({"res2.0.conv1.weight": torch.zeros(1)}, source=source)


def test_an_unknown_source_or_value_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint source 'vovnett'. Did you mean 'vovnet'"):
        convert({}, source="vovnett")
    with pytest.raises(CheckpointError, match="holds str under 'author'"):
        convert({"author": "somebody"}, source="detnet")


def test_weights_that_fit_nothing_are_refused() -> None:
    cfg = retinanet_cfg("moganet", ["stage2", "stage3", "stage4"])
    with pytest.raises(CheckpointError, match="None of the 1 tensors of this detnet checkpoint fits"):
        convert({"conv1.weight": torch.zeros(64, 3, 7, 7)}, source="detnet", cfg=cfg)


@pytest.mark.parametrize(
    ("source", "family", "warned"),
    [("vovnet", "vovnet", False), ("vovnet-timm", "vovnet", True), ("moganet", "moganet", True)],
)
def test_another_normalisation_of_images_is_warned_about(
    source: str, family: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = retinanet_cfg(family, None if family == "vovnet" else ["stage2", "stage3", "stage4"])
    trunk = VoVNet(body="V-19-slim-dw-eSE") if family == "vovnet" else MogaNet(arch="xtiny")
    state = trunk.state_dict()
    state = {timm_name(k): v for k, v in state.items()} if source == "vovnet-timm" else state
    with caplog.at_level(logging.WARNING):
        convert(state, source=source, cfg=cfg)
    assert ("INPUT.FORMAT is BGR, but weights of" in caplog.text) == warned
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = (
        "RGB",
        [123.675, 116.28, 103.53],
        [58.395, 57.12, 57.375],
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        convert(state, source=source, cfg=cfg)
    assert ("INPUT.FORMAT is RGB" in caplog.text) == (not warned)
