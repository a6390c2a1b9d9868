"""Counts against the published cost model, and against plain sums."""

from __future__ import annotations

from pathlib import Path

from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError
from d2_ext.utils.analysis import (
    count_multiply_adds,
    count_parameters,
    mean_counts,
    measure_active_shares,
    totals,
)

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / "configs/VisDrone"
SIZE = (800, 1344)
SMALL = ("MODEL.FPN.OUT_CHANNELS", "32")


def model_of(name: str, *options: str) -> nn.Module:
    path = str(CONFIGS / f"{name}_R18_FPN512.yaml")
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options]
    return build_model(load_config(path, options)).eval()


@pytest.fixture(scope="module")
def sparse() -> nn.Module:
    return model_of("retinanet_ceasc")


def giga(model: nn.Module, active: float | None = None) -> dict[str, float]:
    return {key: count.multiply_adds / 1e9 for key, count in totals(count_multiply_adds(model, SIZE, active)).items()}


def test_the_dense_baseline_costs_what_is_published() -> None:
    # CEASC (arXiv:2303.14488): 529.8 with a counter that adds norms and pooling (0.07 %), at 800 x 1344
    model = model_of("retinanet")
    counts = count_multiply_adds(model, SIZE)
    sums = {key: count.multiply_adds / 1e9 for key, count in totals(counts).items()}
    assert sums == pytest.approx({"backbone": 38.86, "fpn": 54.77, "head": 435.79, "total": 529.42}, rel=1e-3)
    pieces = {c.piece: c.multiply_adds / 1e9 for c in counts if c.part != "head"}
    assert [pieces[x] for x in ("stem", "res2", "res3", "res5")] == pytest.approx([2.53, 9.91, 8.81, 8.81], rel=1e-3)
    levels = {x: sum(c.multiply_adds for c in counts if c.level == x) / 1e9 for x in ("p3", "p4", "p5", "p6", "p7")}
    assert list(levels.values()) == pytest.approx([326.84, 81.71, 20.43, 5.311, 1.498], rel=1e-3)
    parameters = count_parameters(model)
    assert parameters["trained"] == pytest.approx(42.738e6, rel=1e-4)
    assert parameters["total"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("active", "head", "whole"),
    [(0.05, 33.7, 127.4), (0.10, 55.5, 149.2), (0.15, 77.3, 171.0), (0.20, 99.1, 192.7), (0.30, 142.7, 236.3)],
)
def test_sparse_heads_cost_what_is_published(sparse: nn.Module, active: float, head: float, whole: float) -> None:
    sums = totals(count_multiply_adds(sparse, SIZE, active))
    assert sums["head"].multiply_adds / 1e9 == pytest.approx(head, abs=0.05)  # the digits given
    assert sums["total"].multiply_adds / 1e9 == pytest.approx(whole, rel=1e-3)
    assert sums["head"].multiply_adds / 1e9 == pytest.approx(11.952 + active * 435.79, rel=1e-4)
    assert sums["head"].dense / 1e9 == pytest.approx(435.79, rel=1e-4)
    assert sums["total"].dense / 1e9 == pytest.approx(529.42, rel=1e-4)


def test_gfl_costs_what_is_published() -> None:
    assert giga(model_of("gfl")) == pytest.approx(
        {"backbone": 38.86, "fpn": 54.77, "head": 430.84, "total": 524.47}, rel=1e-3
    )
    sums = totals(count_multiply_adds(model_of("gfl_ceasc"), SIZE, 0.1035))
    assert sums["total"].multiply_adds / 1e9 == pytest.approx(150.2, rel=1e-3)  # the paper's figure, VisDrone
    assert sums["head"].dense / 1e9 == pytest.approx(430.84, rel=1e-4)


def test_the_extras_of_a_sparse_head_are_mask_and_context(sparse: nn.Module) -> None:
    counts = count_multiply_adds(sparse, SIZE, 0.0)
    pieces = {}
    for c in counts:
        if c.part == "head":
            pieces[c.piece.split()[1]] = pieces.get(c.piece.split()[1], 0) + c.multiply_adds / 1e9
    assert pieces == pytest.approx({"mask": 0.2064, "context": 11.744, "layers": 0, "predictors": 0}, rel=1e-3)


def test_a_layer_before_the_masks_counts_once_for_both_branches() -> None:
    counts = count_multiply_adds(model_of("retinanet_ceasc", "MODEL.CEASC.MASK_CHANNELS", "16"), SIZE, 0.0)
    positions = 16800 + 4200 + 1050 + 273 + 77
    assert sum(c.multiply_adds for c in counts if c.piece == "mask_stem") == 512 * 16 * positions
    assert sum(c.multiply_adds for c in counts if c.piece.endswith(" mask")) == 2 * 9 * 16 * positions


def test_shares_may_differ_by_branch_and_level(sparse: nn.Module) -> None:
    counts = count_multiply_adds(sparse, SIZE, {"cls": [0.1, 0, 0, 0, 0], "reg": [0, 0, 0.5, 0, 0]})
    active = {(c.piece, c.level): c.multiply_adds for c in counts if c.piece.endswith("layers") and c.multiply_adds}
    assert active == pytest.approx(
        {("cls_tower layers", "p3"): 0.1 * 36 * 512**2 * 16800, ("reg_tower layers", "p5"): 0.5 * 36 * 512**2 * 1050}
    )


@pytest.mark.parametrize("name", ["retinanet", "gfl"])
def test_counts_equal_those_of_pytorchs_own_counter(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of(name, *SMALL)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = model.backbone(torch.zeros(1, 3, 96, 160))
        model.head([features[x] for x in model.head_in_features])
    assert totals(count_multiply_adds(model, (96, 160)))["total"].multiply_adds * 2 == counter.get_total_flops()


def test_measured_shares_are_those_of_the_masks() -> None:
    model = model_of("gfl_ceasc", *SMALL)
    images = model.preprocess_image([{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)}])
    shares = measure_active_shares(model, images.tensor)
    masks = model.activation_masks([{"image": torch.zeros(3, 96, 128)}])[0]
    assert [len(shares[b]) for b in ("cls", "reg")] == [len(masks)] * 2
    features = model.backbone(images.tensor)
    p4 = (model.head.reg_tower.mask_conv(features["p4"]) >= 0).float().mean().item()
    assert shares["reg"][1] == pytest.approx(p4)
    assert sum(shares["cls"]) > 0


def test_means_over_images(sparse: nn.Module) -> None:
    one, two = (count_multiply_adds(sparse, SIZE, x) for x in (0.1, 0.3))
    middle = count_multiply_adds(sparse, SIZE, 0.2)
    assert totals(mean_counts([one, two]))["total"].multiply_adds == pytest.approx(
        totals(middle)["total"].multiply_adds
    )


@pytest.mark.parametrize("active", [None, 1.5, {"cls": [0.1], "reg": [0.1]}])
def test_shares_that_cannot_be_are_refused(sparse: nn.Module, active: object) -> None:
    with pytest.raises(ConfigError, match="active positions|Active shares"):
        count_multiply_adds(sparse, SIZE, active)


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="Linear is no dense detector"):
        count_multiply_adds(nn.Linear(2, 2), SIZE)
