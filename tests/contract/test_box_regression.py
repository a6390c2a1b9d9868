"""Box transforms and their losses, by hand; on either implementation of Detectron2."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear, _dense_box_regression_loss
from detectron2.structures import Boxes
from torch import Tensor

ANCHOR = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
TARGET = torch.tensor([[2.0, 5.0, 22.0, 15.0]])


def random_boxes(num: int) -> Tensor:
    corner, size = torch.rand(num, 2) * 50, torch.rand(num, 2) * 40 + 1
    return torch.cat([corner, corner + size], dim=1)


def test_deltas_by_hand() -> None:
    # Centres (5, 10) and (12, 10), sizes (10, 20) and (20, 10).
    expected = [0.7, 0.0, math.log(2), -math.log(2)]
    assert Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).get_deltas(ANCHOR, TARGET)[0].tolist() == pytest.approx(expected)
    weighted = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).get_deltas(ANCHOR, TARGET)[0].tolist()
    assert weighted == pytest.approx([7, 0, 5 * math.log(2), -5 * math.log(2)])


@pytest.mark.parametrize("transform", [Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), Box2BoxTransform((1.0,) * 4)])
def test_deltas_bring_the_source_to_the_target(transform: Box2BoxTransform) -> None:
    source, target = random_boxes(50), random_boxes(50)
    deltas = transform.get_deltas(source, target)
    torch.testing.assert_close(transform.apply_deltas(deltas, source), target, atol=1e-3, rtol=1e-4)


def test_scales_are_bounded_from_above_only() -> None:
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    wide = transform.apply_deltas(torch.tensor([[0.0, 0.0, 99.0, -99.0]]), ANCHOR)[0]
    assert (wide[2] - wide[0]).item() == pytest.approx(10 * 1000 / 16, rel=1e-5)
    assert (wide[3] - wide[1]).item() == pytest.approx(0, abs=1e-6)


def test_each_box_takes_several_deltas() -> None:
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    deltas = torch.randn(3, 8)
    boxes = random_boxes(3)
    both = transform.apply_deltas(deltas, boxes)
    torch.testing.assert_close(both[:, 4:], transform.apply_deltas(deltas[:, 4:], boxes))
    assert transform.apply_deltas(deltas.half(), boxes).dtype == torch.float32  # in single precision


def test_no_boxes_are_legal_and_a_source_without_width_is_refused() -> None:
    none = torch.zeros(0, 4)
    for transform in (Box2BoxTransform((1.0,) * 4), Box2BoxTransformLinear()):
        assert transform.get_deltas(none, none).shape == transform.apply_deltas(none, none).shape == (0, 4)
    with pytest.raises(AssertionError, match=r"."):
        Box2BoxTransform((1.0,) * 4).get_deltas(torch.tensor([[3.0, 3, 3, 9]]), TARGET)


def test_linear_deltas_are_distances_in_sizes_of_the_source() -> None:
    source = torch.tensor([[4.0, 4.0, 12.0, 12.0]])  # centre (8, 8), size 8
    target = torch.tensor([[0.0, 4.0, 16.0, 40.0]])
    assert Box2BoxTransformLinear(False).get_deltas(source, target).tolist() == [[8, 4, 8, 32]]
    deltas = Box2BoxTransformLinear().get_deltas(source, target)
    assert deltas.tolist() == [[1, 0.5, 1, 4]]
    assert Box2BoxTransformLinear().apply_deltas(deltas, source).tolist() == target.tolist()
    assert Box2BoxTransformLinear().apply_deltas(-deltas, source).tolist() == [[8, 8, 8, 8]]  # never inside out


def loss(kind: str, deltas: Tensor, beta: float = 0.0) -> Tensor:
    """Loss on two levels of one anchor each, of which only the second is foreground."""
    anchors = [Boxes(torch.tensor([[50.0, 50.0, 60.0, 60.0]])), Boxes(ANCHOR)]
    gt_boxes = [torch.cat([torch.zeros(1, 4), TARGET])]  # of size 0 where it is not foreground
    return _dense_box_regression_loss(
        anchors,
        Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        [torch.zeros(1, 1, 4), deltas],
        gt_boxes,
        torch.tensor([[False, True]]),
        box_reg_loss_type=kind,
        smooth_l1_beta=beta,
    )


def test_l1_loss_is_of_the_foreground_deltas() -> None:
    exact = 0.7 + 2 * math.log(2)
    assert loss("smooth_l1", torch.zeros(1, 1, 4)).item() == pytest.approx(exact)
    # beta 1: 0.5 d² below 1.
    quadratic = 0.5 * (0.7**2 + 2 * math.log(2) ** 2)
    assert loss("smooth_l1", torch.zeros(1, 1, 4), beta=1.0).item() == pytest.approx(quadratic)


def test_iou_losses_are_of_the_foreground_boxes() -> None:
    zero = torch.zeros(1, 1, 4, requires_grad=True)  # predicts the anchor, (0, 0, 10, 20)
    # Intersection 8 x 10, union 200 + 200 - 80, enclosing box 22 x 20 with diagonal² 884, centres 7 apart.
    iou = 80 / 320
    assert loss("giou", zero).item() == pytest.approx(1 - iou + (440 - 320) / 440, rel=1e-5)
    assert loss("diou", zero).item() == pytest.approx(1 - iou + 49 / 884, rel=1e-5)
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    assert loss("ciou", zero).item() == pytest.approx(1 - iou + 49 / 884 + v * v / (1 - iou + v), rel=1e-5)
    loss("ciou", zero).backward()
    assert torch.isfinite(zero.grad).all()
    with pytest.raises(ValueError, match="l7"):
        loss("l7", zero)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_without_foreground_the_loss_is_zero_and_has_a_gradient(kind: str) -> None:
    deltas = torch.zeros(1, 1, 4, requires_grad=True)
    value = _dense_box_regression_loss(
        [Boxes(ANCHOR)], Box2BoxTransform((1.0,) * 4), [deltas], [TARGET], torch.tensor([[False]]), kind
    )
    value.backward()
    assert value.item() == 0
    assert deltas.grad.abs().sum() == 0
