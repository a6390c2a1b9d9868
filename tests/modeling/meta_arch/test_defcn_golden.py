"""DeFCN against the outputs of the authors' code on the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.utils.events import EventStorage

from helpers.golden import load
from helpers.point_scenes import STRIDES, head_output, in_px, scene_truth, tiny_model

FILTER = ("MODEL.DEFCN.FILTER.ENABLED", True)
BITS = ("MODEL.DEFCN.FILTER_FOCAL", "probability")
AUX = ("MODEL.DEFCN.AUX_LOSS.ENABLED", True)
# Figures of the authors' code for the inputs of defcn_targets.pt: classification, box, auxiliary.
CASES = {
    "poto": ((), (239.822754, 1.610359)),
    "argmax": (("MODEL.DEFCN.ASSIGNER", "poto_argmax"), (258.260742, 1.435549)),
    "foreground loss": (("MODEL.DEFCN.ASSIGNER", "loss"), (239.789139, 1.559024)),
    "center": (("MODEL.DEFCN.ASSIGNER", "center"), (240.151337, 1.881446)),
    "anchor": (("MODEL.DEFCN.ASSIGNER", "anchor"), (258.494751, 1.560194)),
    "3dmf": (FILTER, (35.860298, 1.643707)),
    "3dmf in probabilities": ((*FILTER, *BITS), (35.860298, 1.643707)),
    "3dmf and aux": ((*FILTER, *AUX), (35.860298, 1.643707, 58.984455)),
}
# The baselines of the paper are FCOS with the box loss of that code: no smoothing, divisors of at least 1.
BASELINE = ("MODEL.FCOS.IOU_SMOOTHING", False, "MODEL.FCOS.MIN_CENTERNESS_SUM", 1.0)
BASELINES = {
    "fcos": (BASELINE, (47.726620, 0.859236, 0.791819)),
    "fcos without center-ness": ((*BASELINE, "MODEL.FCOS.BOX_QUALITY", "none"), (47.726620, 0.877149)),
}


def defcn_losses(case: dict[str, Any], options: tuple[Any, ...]) -> list[float]:
    # The foreground loss also weighs the box term by BOX_LOSS_WEIGHT; its default is the paper's 2.
    model = tiny_model("DeFCN", *options)
    boxes = in_px(case["reg_stride_units"])
    if model.assigner == "anchor":
        boxes = [0.1 * x for x in case["reg_stride_units"]]
    filters = case["filter_logits"] if model.head.filter is not None else []
    output = head_output(case["logits"], boxes, filters)
    with EventStorage() as storage:
        result = model.training_losses(case["logits"], output, scene_truth(case))
        assert storage.latest()["num_fg_per_gt"][0] > 0.9
    return [float(x) for x in result.values()]


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_the_reference(golden: Path, name: str) -> None:
    options, expected = CASES[name]
    found = defcn_losses(load(golden, "defcn_targets"), options)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_the_baselines_are_fcos_by_config(golden: Path, name: str) -> None:
    options, expected = BASELINES[name]
    case = load(golden, "defcn_targets")
    model = tiny_model("FCOS", *options)
    quality = case["filter_logits"] if model.box_quality != "none" else []
    output = head_output(case["logits"], in_px(case["reg_stride_units"]), quality)
    with EventStorage():
        result = model.training_losses(case["logits"], output, scene_truth(case))
    assert [float(x) for x in result.values()] == pytest.approx(expected, rel=1e-5)
    assert model.strides == list(STRIDES)
