"""FCOS against the outputs of the original code and of AdelaiDet on the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from helpers.golden import load
from helpers.point_scenes import head_output, in_px, instances, scene_grid, scene_truth, tiny_model

# Figures of the reference codes for the inputs of fcos_losses_tianzhi.pt: classification, box, quality.
ORIGINAL = ("MODEL.FCOS.INCLUSIVE_PIXELS", True)
PLAIN = (
    *ORIGINAL,
    *("MODEL.FCOS.BOX_ACTIVATION", "exp", "MODEL.FCOS.QUALITY_ON", "cls", "MODEL.FCOS.BOX_LOSS", "iou"),
    *("MODEL.FCOS.CENTER_SAMPLING_RADIUS", 0.0),
)
CASES = {
    "original, improved": (ORIGINAL, (47.703606, 0.845041, 0.764226)),
    "original, linear IoU": ((*ORIGINAL, "MODEL.FCOS.BOX_LOSS", "linear_iou"), (47.703606, 0.785363, 0.764226)),
    "original, -ln IoU": ((*ORIGINAL, "MODEL.FCOS.BOX_LOSS", "iou"), (47.703606, 1.858447, 0.764226)),
    "original, plain": (PLAIN, (9.635703, 1.983301, 0.821046)),
    "AdelaiDet": ((), (47.703606, 0.845041, 0.764226)),
    "AdelaiDet, IoU quality": (("MODEL.FCOS.BOX_QUALITY", "iou"), (47.703606, 0.849912, 0.848606)),
    "AdelaiDet, moving_fg": (("MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg"), (34.881115, 0.845041, 0.764226)),
    "AdelaiDet, all": (("MODEL.FCOS.LOSS_NORMALIZER_CLS", "all"), (0.248311, 0.845041, 0.764226)),
    "AdelaiDet, whole boxes, -ln IoU": (
        ("MODEL.FCOS.CENTER_SAMPLING_RADIUS", 0.0, "MODEL.FCOS.BOX_LOSS", "iou"),
        (9.635704, 1.893089, 0.821046),
    ),
}


def losses(options: tuple[Any, ...], case: dict[str, Any], truth: list[Instances]) -> dict[str, Tensor]:
    model = tiny_model("FCOS", *options)
    distances = in_px(case["reg_stride_units"])
    if model.head.box_activation == "exp":  # the reference fed (reg + 0.05) * stride, never 0
        distances = in_px([x + 0.05 for x in case["reg_stride_units"]])
    output = head_output(case["logits"], distances, case["centerness"])
    grid = scene_grid()
    with EventStorage():
        return model.losses(grid, output, model.assign(grid, truth))


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_the_reference(golden: Path, name: str) -> None:
    options, expected = CASES[name]
    case = load(golden, "fcos_losses_tianzhi")
    result = losses(options, case, scene_truth(case))
    found = [float(result[key]) for key in ("loss_cls", "loss_box_reg", "loss_quality")]
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_empty_second_image_gives_the_losses_of_adelaidet(golden: Path) -> None:
    case = load(golden, "fcos_losses_tianzhi")
    truth = [scene_truth(case)[0], instances([], [])]
    result = losses((), case, truth)
    assert [float(x) for x in result.values()] == pytest.approx([82.265495, 0.837046, 0.728307], rel=1e-5)


def test_gradients_equal_the_reference(golden: Path) -> None:
    case = load(golden, "fcos_losses_tianzhi")
    for key in ("logits", "reg_stride_units", "centerness"):
        case[key] = [x.requires_grad_() for x in case[key]]
    sum(losses(ORIGINAL, case, scene_truth(case)).values()).backward()
    names = {"grad_logits": "logits", "grad_reg": "reg_stride_units", "grad_ctr": "centerness"}
    for name, key in names.items():
        for ours, theirs in zip(case[key], case["tianzhi_imprv"][name], strict=True):
            torch.testing.assert_close(ours.grad, theirs, rtol=1e-4, atol=1e-6)
