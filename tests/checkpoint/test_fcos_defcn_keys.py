"""Published files of FCOS, AdelaiDet and DeFCN: every tensor finds its place in our models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from d2_ext import add_d2_ext_config
from d2_ext.checkpoint.convert import convert
from d2_ext.checkpoint.defcn import convert_defcn
from d2_ext.checkpoint.fcos import convert_adelaidet, convert_fcos, strip_module_prefix
from d2_ext.errors import CheckpointError

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from helpers.golden import load

DEFORM = (
    *("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True], "MODEL.RESNETS.DEFORM_MODULATED", True),
    *("MODEL.FCOS.DEFORM_LAST_CONV", True),
)
X101 = ("MODEL.RESNETS.DEPTH", 101, "MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 8)
RT = (
    *("MODEL.RESNETS.NORM", "SyncBN", "MODEL.FCOS.TOP_LEVELS", 0, "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5"]),
    *("MODEL.FCOS.SIZES_OF_INTEREST", [64, 128]),
)
FCOS_FILES = {
    "tianzhi/fcos_R_50_FPN_1x": (),
    "tianzhi/fcos_imprv_dcnv2_R_50_FPN_1x": DEFORM,
    "tianzhi/fcos_imprv_R_101_FPN_2x": ("MODEL.RESNETS.DEPTH", 101),
    "tianzhi/fcos_imprv_X_101_32x8d_FPN_2x": X101,
    "adelaidet/R_50_1x": (),
    "adelaidet/MS_X_101_32x8d_2x": X101,
    "adelaidet/FCOS_RT/MS_R_50_4x_syncbn": RT,
    "adelaidet/FCOS_RT/MS_R_50_4x_syncbn_bn_head": (*RT, "MODEL.FCOS.NORM", "SyncBN"),
}
DEFCN_FILES = {
    "poto": (),
    "3dmf": ("MODEL.DEFCN.FILTER.ENABLED", True),
    "aux": ("MODEL.DEFCN.FILTER.ENABLED", True, "MODEL.DEFCN.AUX_LOSS.ENABLED", True),
    "wo_gn": ("MODEL.DEFCN.FILTER.ENABLED", True, "MODEL.DEFCN.FILTER.NORM", ""),
    "argmax": ("MODEL.DEFCN.ASSIGNER", "poto_argmax"),
    "loss": ("MODEL.DEFCN.ASSIGNER", "loss"),
    "center": ("MODEL.DEFCN.ASSIGNER", "center"),
    "anchor": ("MODEL.DEFCN.ASSIGNER", "anchor"),
    "fcos": ("MODEL.META_ARCHITECTURE", "FCOS"),
    "fcos_wo_ctr": ("MODEL.META_ARCHITECTURE", "FCOS", "MODEL.FCOS.BOX_QUALITY", "none"),
    "crowd_3dmf": ("MODEL.DEFCN.NUM_CLASSES", 1, "MODEL.DEFCN.FILTER.ENABLED", True),
}


def r50_cfg(*options: Any, meta: str = "FCOS") -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = meta
    cfg.MODEL.BACKBONE.NAME = "build_fcos_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.merge_from_list(list(options))
    return cfg


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in tensors.items()}


def without_memory(listing: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in listing.items()}


def build_without_memory(cfg: CfgNode) -> dict[str, list[int]]:
    with torch.device("meta"):
        return shapes(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict())


@pytest.mark.parametrize("name", FCOS_FILES)
def test_each_published_fcos_file_fits_our_model(golden: Path, name: str) -> None:
    listing = load(golden, "fcos_checkpoint_keys")[name]
    cfg = r50_cfg(*FCOS_FILES[name])
    rename = convert_fcos if name.startswith("tianzhi") else convert_adelaidet
    assert shapes(rename(without_memory(listing), cfg)) == build_without_memory(cfg)


@pytest.mark.parametrize("name", DEFCN_FILES)
def test_each_published_defcn_file_fits_our_model(golden: Path, name: str) -> None:
    listing = load(golden, "defcn_checkpoint_keys")[name]
    cfg = r50_cfg(*DEFCN_FILES[name], meta="DeFCN") if name[:4] != "fcos" else r50_cfg(*DEFCN_FILES[name])
    ours = {key: shape for key, shape in build_without_memory(cfg).items() if not key.startswith("backbone.")}
    assert shapes(convert_defcn(without_memory(listing), cfg)) == ours


def test_the_original_numbers_stages_from_one_and_levels_by_stage() -> None:
    names = {
        "module.module.backbone.body.layer4.2.bn3.weight": "backbone.bottom_up.res5.2.conv3.norm.weight",
        "backbone.body.layer1.0.downsample.1.bias": "backbone.bottom_up.res2.0.shortcut.norm.bias",
        "backbone.body.layer2.0.conv2.offset.bias": "backbone.bottom_up.res3.0.conv2_offset.bias",
        "backbone.fpn.fpn_inner2.weight": "backbone.fpn_lateral3.weight",
        "backbone.fpn.top_blocks.p6.weight": "backbone.top_block.p6.weight",
        "rpn.head.centerness.bias": "head.ctrness.bias",
    }
    converted = convert_fcos({key: torch.zeros(1) for key in names}, r50_cfg())
    assert list(converted) == list(names.values())


def test_frozen_variances_lose_the_epsilon_that_detectron2_adds() -> None:
    key = "backbone.body.stem.bn1.running_var"
    frozen = convert_fcos({key: torch.ones(1)}, r50_cfg())
    trained = convert_fcos({key: torch.ones(1)}, r50_cfg("MODEL.RESNETS.NORM", "BN"))
    new = "backbone.bottom_up.stem.conv1.norm.running_var"
    assert frozen[new].item() == pytest.approx(1 - 1e-5)
    assert trained[new].item() == 1


def test_the_pyramid_of_the_original_gives_the_same_maps(golden: Path) -> None:
    case = load(golden, "fcos_fpn")
    theirs = {f"backbone.fpn.{key}": value for key, value in case["state_dict_tianzhi"].items()}
    converted = convert_fcos(theirs, r50_cfg())
    assert converted.keys() == {f"backbone.{key}" for key in case["state_dict_detectron2"]}
    for key, value in case["state_dict_detectron2"].items():
        assert torch.equal(converted[f"backbone.{key}"], value)


def test_other_class_counts_and_foreign_keys_are_refused_with_advice() -> None:
    with pytest.raises(CheckpointError, match=r"20 classes.*Set it to 20"):
        convert_adelaidet({"proposal_generator.fcos_head.cls_logits.bias": torch.zeros(20)}, r50_cfg())
    with pytest.raises(CheckpointError, match="'roi_heads.weight' is not one of an original FCOS file"):
        convert_fcos({"roi_heads.weight": torch.zeros(1)}, r50_cfg())
    with pytest.raises(CheckpointError, match=r"MODEL\.META_ARCHITECTURE to 'FCOS'"):
        convert_defcn(
            {"head.centerness.weight": torch.zeros(1), "head.scales.0.scale": torch.ones(1)}, r50_cfg(meta="DeFCN")
        )
    with pytest.raises(CheckpointError, match=r"lacks 'head.filter.weight'.*FILTER\.ENABLED"):
        convert_defcn({"head.scales.0.scale": torch.ones(1)}, r50_cfg("MODEL.DEFCN.FILTER.ENABLED", True, meta="DeFCN"))


def test_another_pixel_mean_is_said_and_stored_ones_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert convert_fcos({"pixel_mean": torch.tensor([1.0, 2.0, 3.0])}, r50_cfg()) == {}
    assert "trained with pixel_mean [1.0, 2.0, 3.0]" in caplog.text
    assert "MODEL.PIXEL_MEAN is [103.53, 116.28, 123.675], but the weights expect [102.9801" in caplog.text


def test_module_prefixes_are_stripped_only_at_the_start() -> None:
    assert list(strip_module_prefix({"module.module.a.module.b": torch.ones(1)})) == ["a.module.b"]


@pytest.mark.parametrize(
    ("source", "file", "name"),
    [
        ("fcos", "fcos_checkpoint_keys", "tianzhi/fcos_R_50_FPN_1x"),
        ("adelaidet", "fcos_checkpoint_keys", "adelaidet/R_50_1x"),
    ],
)
def test_convert_finds_nothing_missing_and_nothing_left(golden: Path, source: str, file: str, name: str) -> None:
    tensors = without_memory(load(golden, file)[name])
    report = convert(tensors, source=source, cfg=r50_cfg()).report
    assert (report.missing, report.unexpected, report.misshaped) == ([], [], {})
    with pytest.raises(CheckpointError, match="cannot be converted without a config"):
        convert(tensors, source=source)
