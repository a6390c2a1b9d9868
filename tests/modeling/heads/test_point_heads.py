"""Heads of FCOS and DeFCN: the references' outputs, initial values, options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.modeling.heads.defcn_head import DeFCNHead
from d2_ext.modeling.heads.fcos_head import FCOSHead

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from helpers.golden import load
from helpers.point_scenes import STRIDES, in_px


def shapes(channels: int = 64) -> list[ShapeSpec]:
    return [ShapeSpec(channels=channels, stride=stride) for stride in STRIDES]


def assert_maps_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def assert_px_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    # In px the references' own float32 rounding is 2.3e-5 from the same head in float64.
    assert_maps_close(*([x / stride for x, stride in zip(maps, STRIDES, strict=True)] for maps in (ours, theirs)))


def fcos_head(state_dict: dict[str, Tensor], **options: Any) -> FCOSHead:
    head = FCOSHead(input_shape=shapes(), num_classes=5, **options)
    head.load_state_dict({key.replace("centerness", "ctrness"): value for key, value in state_dict.items()})
    return head.eval()


@torch.no_grad()
def test_the_head_equals_adelaidets(golden: Path) -> None:
    case = load(golden, "fcos_head_adelaidet_gn")
    out = fcos_head(case["state_dict"]).maps(case["features"])
    assert_maps_close(out.logits, case["eval"]["logits"])
    assert_px_close(out.boxes, in_px(case["eval"]["bbox_reg"]))
    assert_maps_close(out.quality, case["eval"]["ctrness"])


@torch.no_grad()
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_head_equals_the_original_and_is_in_px_in_both_modes(golden: Path, mode: str) -> None:
    case = load(golden, "fcos_head_tianzhi_imprv")
    out = fcos_head(case["state_dict"]).train(mode == "train").maps(case["features"])
    assert_maps_close(out.logits, case[mode]["logits"])
    expected = case[mode]["bbox_reg"]  # in strides while training
    assert_px_close(out.boxes, in_px(expected) if mode == "train" else expected)
    assert_maps_close(out.quality, case[mode]["centerness"])


@torch.no_grad()
def test_the_head_with_max_filtering_equals_the_reference(golden: Path) -> None:
    case = load(golden, "defcn_head_3dmf")
    head = DeFCNHead(input_shape=shapes(), num_classes=5, filter_enabled=True)
    head.load_state_dict(case["state_dict"])
    out = head.maps(case["features"])
    assert_maps_close(out.logits, case["out"]["logits"])
    assert_px_close(out.boxes, case["out"]["bbox_reg_px"])
    assert_maps_close(out.quality, case["out"]["filter"])
    assert_maps_close(head.max3d(case["bbox_subnet"]), case["max3d"])


def test_initial_scores_are_the_prior_and_the_other_biases_zero() -> None:
    head = FCOSHead(input_shape=shapes(32), num_classes=3)
    assert head.cls_logits.bias.tolist() == pytest.approx([-math.log(99)] * 3)  # -4.59512
    assert head.ctrness.bias.item() == 0
    assert [scale.scale.item() for scale in head.scales] == [1.0] * 5
    defcn = DeFCNHead(input_shape=shapes(32), num_classes=3, filter_enabled=True)
    assert defcn.filter.bias.item() == 0
    assert defcn.cls_score.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)


def features(channels: int = 32) -> list[Tensor]:
    return [torch.randn(1, channels, 64 // (stride // 8), 64 // (stride // 8)) for stride in STRIDES]


def test_the_first_version_of_the_paper_exponentiates_px_and_reads_the_class_tower() -> None:
    head = FCOSHead(
        input_shape=shapes(32), num_classes=3, box_activation="exp", quality_on="cls", use_scale=False
    ).eval()
    maps = features()
    out = head.maps(maps)
    cls = head.cls_tower(maps[1], 1)
    torch.testing.assert_close(out.quality[1], head.ctrness(cls))
    torch.testing.assert_close(out.boxes[1], head.bbox_pred(head.bbox_tower(maps[1], 1)).exp())


def test_a_shared_tower_feeds_all_three_predictors() -> None:
    head = FCOSHead(input_shape=shapes(32), num_classes=3, num_share_convs=1, num_cls_convs=0, num_box_convs=0)
    maps = features()
    shared = head.share_tower(maps[0], 0)
    out = head.maps(maps)
    torch.testing.assert_close(out.logits[0], head.cls_logits(shared))
    torch.testing.assert_close(out.quality[0], head.ctrness(shared))


def test_boxes_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = FCOSHead(input_shape=shapes(32), num_classes=3)(features()).boxes
        defcn = DeFCNHead(input_shape=shapes(32), num_classes=3, filter_enabled=True)(features()).boxes
    assert out.values.dtype == defcn.values.dtype == torch.float32


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="Known: exp, relu"):
        FCOSHead(input_shape=shapes(), num_classes=3, box_activation="softplus")
    with pytest.raises(ConfigError, match="'box' or 'cls'"):
        FCOSHead(input_shape=shapes(), num_classes=3, quality_on="bbox")
    with pytest.raises(ConfigError, match=r"equal channels, not \[32, 64\]"):
        FCOSHead(input_shape=[*shapes(32)[:2], *shapes(64)[2:]], num_classes=3)
