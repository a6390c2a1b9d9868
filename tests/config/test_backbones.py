from __future__ import annotations

from collections.abc import Iterator

from d2_ext import add_d2_ext_config
from d2_ext.config.backbones import add_backbones_config
from d2_ext.errors import ConfigError

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone

BUILDERS = {"VOVNET": "build_vovnet_fpn_backbone", "DETNET": "build_detnet_fpn_backbone"}
BUILDERS["MOGANET"] = "build_moganet_fpn_backbone"


class Recorder(CfgNode):
    """A config node that remembers which of its keys were read."""

    def __getattr__(self, name: str) -> object:
        if name in self:
            self.__dict__.setdefault("read", set()).add(name)
        return super().__getattr__(name)

    def __getitem__(self, name: str) -> object:
        self.__dict__.setdefault("read", set()).add(name)
        return super().__getitem__(name)


def make_cfg() -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return cfg


@pytest.mark.parametrize("group", BUILDERS)
def test_every_key_is_read_by_something(group: str) -> None:
    cfg = make_cfg()
    cfg.MODEL[group] = Recorder(dict(cfg.MODEL[group]))
    cfg.MODEL.BACKBONE.NAME = BUILDERS[group]
    cfg.MODEL.FPN.IN_FEATURES = list(cfg.MODEL[group].OUT_FEATURES)
    cfg.MODEL[group].__dict__["read"] = set()
    with torch.device("meta"):
        build_backbone(cfg)
    assert set(cfg.MODEL[group]) - cfg.MODEL[group].__dict__["read"] == set()


# key, a value that differs from the default, and what must differ in the network
EFFECTS = [
    ("VOVNET.CONV_BODY", "V-57-eSE"),
    ("VOVNET.OUT_FEATURES", ["stage2", "stage3", "stage4"]),
    ("VOVNET.NORM", "BN"),
    ("VOVNET.STAGE_WITH_DCN", (False, False, True, True)),
    ("VOVNET.ESE_LAST_ONLY", True),
    ("DETNET.OUT_FEATURES", ["stage2", "stage3"]),
    ("DETNET.NORM", "GN"),
    ("DETNET.NARROW", True),
    ("DETNET.STRIDE_IN_1X1", True),
    ("DETNET.FPN_STYLE", "detnet_pytorch"),
    ("MOGANET.ARCH", "xtiny"),
    ("MOGANET.OUT_FEATURES", ["stage1", "stage2"]),
    ("MOGANET.NORM", "FrozenBN"),
    ("MOGANET.DROP_PATH_RATE", 0.3),
]


def described(cfg: CfgNode, group: str) -> str:
    cfg.MODEL.BACKBONE.NAME = BUILDERS[group]
    cfg.MODEL.FPN.IN_FEATURES = list(cfg.MODEL[group].OUT_FEATURES)
    with torch.device("meta"):
        return str(build_backbone(cfg))


@pytest.mark.parametrize(("key", "value"), EFFECTS)
def test_a_key_changes_the_network(key: str, value: object) -> None:
    cfg = make_cfg()
    group = key.split(".")[0]
    before = described(cfg, group)
    cfg.merge_from_list([f"MODEL.{key}", value])
    assert described(cfg, group) != before


def test_keys_without_a_printed_effect_reach_their_modules() -> None:
    cfg = make_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4"]
    for group in BUILDERS:
        cfg.MODEL[group].RECOMPUTE = True
    cfg.merge_from_list(["MODEL.VOVNET.STAGE_WITH_DCN", (False, True, False, False)])
    cfg.merge_from_list(["MODEL.VOVNET.WITH_MODULATED_DCN", True, "MODEL.VOVNET.DEFORMABLE_GROUPS", 2])
    cfg.merge_from_list(["MODEL.MOGANET.SCALE_INIT", 0.25, "MODEL.MOGANET.DOUBLE_SILU", True])
    cfg.merge_from_list(["MODEL.DETNET.FPN_UPSAMPLE", "bilinear"])

    def build(group: str, device: str = "meta") -> torch.nn.Module:
        cfg.MODEL.BACKBONE.NAME = BUILDERS[group]
        with torch.device(device):
            return build_backbone(cfg)

    vovnet, detnet, moganet = build("VOVNET"), build("DETNET"), build("MOGANET", "cpu")
    assert vovnet.bottom_up.stage3.recompute
    assert vovnet.bottom_up.stage3[0].layers[0].conv_offset.out_channels == 27 * 2
    assert detnet.bottom_up.stage2.recompute
    assert detnet.upsample == "bilinear"
    assert moganet.bottom_up.blocks2.recompute
    block = moganet.bottom_up.blocks1[0]
    assert block.attn.double_silu
    assert block.layer_scale_1.unique().item() == block.attn.sigma.scale.unique().item() == 0.25


def test_all_norms_are_frozen_on_request() -> None:
    cfg = make_cfg()
    cfg.merge_from_list(
        ["MODEL.VOVNET.NORM", "BN", "MODEL.VOVNET.FREEZE_ALL_NORMS", True, "MODEL.BACKBONE.FREEZE_AT", 1]
    )
    assert "FrozenBatchNorm2d" in described(cfg, "VOVNET")
    assert " BatchNorm2d" not in described(cfg, "VOVNET")


@pytest.mark.parametrize("key", ["OUT_CHANNELS", "BACKBONE_OUT_CHANNELS"])
def test_keys_that_never_had_an_effect_say_so_when_they_are_set(key: str) -> None:
    cfg = make_cfg()
    cfg.MODEL.VOVNET[key] = 128
    with pytest.raises(ConfigError, match=f"MODEL.VOVNET.{key} is 128.*MODEL.FPN.OUT_CHANNELS"):
        described(cfg, "VOVNET")


def values(node: CfgNode) -> Iterator[object]:
    for value in node.values():
        yield from values(value) if isinstance(value, CfgNode) else [value]


def test_adding_the_keys_twice_keeps_what_was_set() -> None:
    cfg = make_cfg()
    cfg.MODEL.VOVNET.CONV_BODY = "V-99-eSE"
    add_backbones_config(cfg)
    assert cfg.MODEL.VOVNET.CONV_BODY == "V-99-eSE"
    assert list(values(cfg.MODEL.DETNET)) == list(values(make_cfg().MODEL.DETNET))


def test_keys_made_by_the_original_package_are_kept_and_completed() -> None:
    cfg = get_cfg()
    cfg.MODEL.VOVNET = CfgNode({"CONV_BODY": "V-19-eSE", "NORM": "BN"})
    add_backbones_config(cfg)
    assert cfg.MODEL.VOVNET.CONV_BODY == "V-19-eSE"
    assert cfg.MODEL.VOVNET.RECOMPUTE is False
