"""FCOS and DeFCN as detectors: edge cases of training, inference, state, several workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.modeling.heads.base import HeadOutput
from d2_ext.modeling.losses.normalizer import MovingAverage, average_over_workers
from d2_ext.modeling.meta_arch.dense import PointDetector

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from helpers import two_workers
from helpers.point_scenes import STRIDES, head_output, image, tiny_cfg, tiny_model

FILTER = ("MODEL.DEFCN.FILTER.ENABLED", True)
VARIANTS = {
    "FCOS": ("FCOS",),
    "FCOS plain": ("FCOS", "MODEL.FCOS.BOX_ACTIVATION", "exp", "MODEL.FCOS.CENTER_SAMPLING_RADIUS", 0.0),
    "FCOS IoU quality": ("FCOS", "MODEL.FCOS.BOX_QUALITY", "iou", "MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg"),
    "FCOS no quality": ("FCOS", "MODEL.FCOS.BOX_QUALITY", "none", "MODEL.FCOS.LOSS_NORMALIZER_CLS", "all"),
    "FCOS ATSS": ("FCOS", "MODEL.FCOS.ASSIGNER", "atss"),
    "FCOS DCN": ("FCOS", "MODEL.FCOS.DEFORM_LAST_CONV", True),
    "POTO": ("DeFCN",),
    "POTO argmax": ("DeFCN", "MODEL.DEFCN.ASSIGNER", "poto_argmax"),
    "foreground loss": ("DeFCN", "MODEL.DEFCN.ASSIGNER", "loss"),
    "center": ("DeFCN", "MODEL.DEFCN.ASSIGNER", "center"),
    "anchor": ("DeFCN", "MODEL.DEFCN.ASSIGNER", "anchor"),
    "3DMF and aux": ("DeFCN", *FILTER, "MODEL.DEFCN.AUX_LOSS.ENABLED", True),
    "filter without max pooling": ("DeFCN", *FILTER, "MODEL.DEFCN.FILTER.MAX_POOLING", False),
    "3DMF without norm": ("DeFCN", *FILTER, "MODEL.DEFCN.FILTER.NORM", "", "MODEL.DEFCN.FILTER_FOCAL", "probability"),
}
SOME = [[10.0, 12.0, 50.0, 60.0], [70.0, 20.0, 120.0, 90.0]]
BATCHES = {
    "two images": lambda: [image(SOME, [0, 3]), image(SOME[:1], [1], size=(64, 96))],
    "one without boxes": lambda: [image(SOME, [0, 3]), image([], [])],
    "none with boxes": lambda: [image([], []), image([], [])],
    "a box smaller than any cell": lambda: [image([[8.2, 8.2, 9.0, 9.0]], [2])],
    "many boxes in a small image": lambda: [image([[1.0, 1.0, 30.0, 30.0]] * 40, [1] * 40, size=(32, 32))],
    "only ignore regions": lambda: [image(SOME, [-1, -1])],
}


@pytest.fixture(autouse=True)
def _storage() -> Iterator[None]:
    with EventStorage():
        yield


def train_step(model: PointDetector, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    losses = model(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_on_every_kind_of_batch(variant: str, batch: str) -> None:
    model = tiny_model(*VARIANTS[variant])
    losses = train_step(model, BATCHES[batch]())
    assert all(loss.isfinite() for loss in losses.values()), losses
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "data parallel training would wait for these"


@pytest.mark.parametrize("variant", VARIANTS)
def test_inference_gives_sorted_boxes_inside_each_image_whatever_the_batch(variant: str) -> None:
    model = tiny_model(*VARIANTS[variant]).eval()
    model.test_score_thresh = 0.004  # below the initial scores
    batch = [image(SOME, [0, 3], size=(96, 128)), image([], [], size=(96, 128))]
    with torch.no_grad():
        together = [output["instances"] for output in model(batch)]
        alone = [model([item])[0]["instances"] for item in batch]
    for found, single in zip(together, alone, strict=True):
        assert 0 < len(found) <= model.max_detections_per_image
        assert (found.scores[:-1] >= found.scores[1:]).all()
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([128.0, 96.0, 128.0, 96.0])).all()
        torch.testing.assert_close(boxes, single.pred_boxes.tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["FCOS", "DeFCN"])
def test_one_pixel_and_bfloat16_work(name: str) -> None:
    model = tiny_model(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train_step(model, [image(SOME, [0, 1])])
        assert all(loss.isfinite() for loss in losses.values())
        found = model.eval()([{"image": torch.zeros(3, 1, 1, dtype=torch.uint8)}])[0]["instances"]
    assert found.image_size == (1, 1)


# Inference by hand: one level of 2 x 2 cells of 8 px.


def one_level(model: PointDetector, output: HeadOutput) -> Instances:
    model.strides = [8]
    return model.detect([torch.zeros(1, 1, 2, 2)], output, [(16, 16)])[0]


def scored(logits: list[float], classes: int = 5) -> Tensor:
    """Map (1, K, 2, 2) with the given logits in class 0 and -20 in all others."""
    maps = torch.full((1, classes, 2, 2), -20.0)
    maps[0, 0] = torch.tensor(logits).view(2, 2)
    return maps


def test_fcos_scores_are_roots_of_products_and_duplicates_vanish() -> None:
    model = tiny_model("FCOS").eval()
    # All four locations predict the box (0, 0, 16, 16).
    distances = torch.tensor([[4.0, 4, 12, 12], [12, 4, 4, 12], [4, 12, 12, 4], [12, 12, 4, 4]])
    predictions = head_output(
        [scored([2.0, 1.0, 0.0, -9.0])], [distances.t().reshape(1, 4, 2, 2)], [torch.zeros(1, 1, 2, 2)]
    )
    found = one_level(model, predictions)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 16, 16]]
    assert found.scores.item() == pytest.approx((torch.sigmoid(torch.tensor(2.0)) * 0.5).sqrt().item())
    model.test_nms_thresh = None
    assert len(one_level(model, predictions)) == 3  # sigmoid(-9) is below the threshold


def test_defcn_keeps_duplicates_and_multiplies_without_a_root() -> None:
    model = tiny_model("DeFCN").eval()
    predictions = head_output(
        [scored([2.0, 1.0, 0.0, -9.0])], [torch.full((1, 4, 2, 2), 8.0)], [torch.zeros(1, 1, 2, 2)]
    )
    found = one_level(model, predictions)
    expected = torch.tensor([2.0, 1.0, 0.0]).sigmoid() * 0.5
    torch.testing.assert_close(found.scores, expected)
    torch.testing.assert_close(found.pred_boxes.tensor[0], torch.tensor([-4.0, -4.0, 12.0, 12.0]))
    model.test_nms_thresh = 0.1
    assert len(one_level(model, predictions)) == 1


def test_inference_leaves_the_predictions_as_they_are() -> None:
    logits = scored([2.0, 1.0, 0.0, -9.0])
    before = logits.clone()
    one_level(tiny_model("DeFCN").eval(), head_output([logits], [torch.ones(1, 4, 2, 2)]))
    assert torch.equal(logits, before)


# Options


def test_inclusive_pixels_add_the_last_pixel_in_the_frame_of_the_file() -> None:
    plain, inclusive = (
        tiny_model("FCOS", "MODEL.FCOS.INCLUSIVE_PIXELS", on, "MODEL.FCOS.SCORE_THRESH_TEST", 0.004).eval()
        for on in (False, True)
    )
    inclusive.load_state_dict(plain.state_dict())
    item = image(SOME, [0, 1]) | {"height": 192, "width": 256}
    with torch.no_grad():
        boxes, longer = (model([item])[0]["instances"].pred_boxes.tensor for model in (plain, inclusive))
    expected = boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(longer, expected.clamp(max=torch.tensor([256.0, 192.0, 256.0, 192.0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("FCOS", "MODEL.FCOS.BOX_QUALITY", "centreness"), r"BOX_QUALITY: 'centreness'.*'centerness'"),
        (("FCOS", "MODEL.FCOS.ASSIGNER", "poto"), "ASSIGNER: 'poto' is not known"),
        (("FCOS", "MODEL.FCOS.IN_FEATURES", ["p3", "p8"]), r"no output 'p8'. .*Known: p3, p4"),
        (("FCOS", "MODEL.FCOS.IN_FEATURES", ["p4", "p3"]), "name them finest first"),
        (("FCOS", "MODEL.FCOS.SIZES_OF_INTEREST", [64]), "does not fit 5 pyramid levels"),
        (("DeFCN", "MODEL.DEFCN.ASSIGNER", "hungarian"), "Known: anchor, center, loss, poto, poto_argmax"),
        (("DeFCN", "MODEL.DEFCN.ASSIGNER", "anchor", "MODEL.DEFCN.ANCHOR_SIZES", [8]), "one size in px for each"),
        (
            ("DeFCN", "MODEL.DEFCN.ASSIGNER", "anchor", "MODEL.DEFCN.AUX_LOSS.ENABLED", True),
            "Disable it or choose another assigner",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_model_is_built(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_model(*options)


def test_the_auxiliary_loss_without_a_filter_branch_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    options = ("DeFCN", "MODEL.DEFCN.AUX_LOSS.ENABLED", True)
    with caplog.at_level(logging.WARNING):
        tiny_model(*options, *FILTER)
        assert caplog.text == ""
        tiny_model(*options)
    assert "AUX_LOSS.ENABLED without FILTER.ENABLED" in caplog.text


def test_levels_and_ranges_follow_the_config() -> None:
    options = ("MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.FCOS.SIZES_OF_INTEREST", [32, 64])
    model = tiny_model("FCOS", *options)
    assert model.strides == [8, 16, 32]
    assert [upper for _, upper in model.assignment.ranges] == [32.0, 64.0, float("inf")]
    train_step(model, [image(SOME, [0, 1])])


# Ignore regions


@pytest.mark.parametrize("name", ["FCOS", "DeFCN"])
def test_background_in_ignore_regions_is_ignored_and_objects_there_are_not(name: str) -> None:
    model = tiny_model(name)
    features = [torch.zeros(1, 1, max(128 // stride, 1), max(128 // stride, 1)) for stride in STRIDES]
    grid = model.make_grid(features)
    truth = image([[0.0, 0.0, 64.0, 64.0], [20.0, 20.0, 44.0, 44.0]], [-1, 2], size=(128, 128))["instances"]

    def assign(_: int, objects: Instances) -> Tensor:
        assert objects.gt_boxes.tensor.tolist() == [[20.0, 20.0, 44.0, 44.0]]
        matched = torch.full((len(grid.points),), -1)
        matched[3 * 16 + 3] = 0  # the point (28, 28)
        return matched

    labels = model.make_targets(grid.cells, [truth], assign).labels[0]
    finest = labels[:256].view(16, 16)
    assert finest[3, 3] == 2
    assert (finest[:8, :8] == -1).sum() == 63
    assert (finest[8:] == model.num_classes).all()
    # P5's cells have 32 px: four lie inside; the whole image's one cell on P7 is covered by a quarter only.
    assert (labels[256 + 64 : 256 + 64 + 16] == -1).sum() == 4
    assert labels[-1] == model.num_classes


# State and several workers


def test_the_moving_normalizer_is_in_the_checkpoint_and_goes_on() -> None:
    cfg = tiny_cfg("FCOS", "MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg")
    model, resumed = build_model(cfg), build_model(cfg)
    train_step(model, [image(SOME, [0, 1])])
    assert 90 < model.state_dict()["moving_positives.value"].item() < 100
    resumed.load_state_dict(model.state_dict())
    batch = [image(SOME, [0, 1])]
    assert model(batch)["loss_cls"].item() == resumed(batch)["loss_cls"].item()


def test_a_moving_average_starts_at_100_and_keeps_nine_tenths() -> None:
    average = MovingAverage()
    assert average(torch.tensor(71.0)).item() == pytest.approx(97.1)
    assert average(torch.tensor(71.0)).item() == pytest.approx(94.49)


def test_averages_of_one_worker_are_the_values() -> None:
    assert [x.item() for x in average_over_workers(torch.tensor(3), 0.5)] == [3.0, 0.5]


@pytest.mark.parametrize("variant", ["FCOS", "POTO"])
def test_two_workers_have_the_losses_of_one_with_the_joined_batch(tmp_path: Path, variant: str) -> None:
    # The second worker has no positive at all: it must neither wait for ever nor change the normalizer's rule.
    result = two_workers.compared(VARIANTS[variant][0], tmp_path)
    for key, joined in result["joined"].items():
        mean = sum(rank[key] for rank in result["ranks"]) / 2
        assert mean == pytest.approx(joined, rel=1e-5), key
    for name, difference in result["gradient_differences"].items():
        assert difference < 1e-5, name
