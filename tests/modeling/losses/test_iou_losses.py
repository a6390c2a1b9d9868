"""IoU losses: values by hand, agreement with torchvision, degenerate boxes."""

from __future__ import annotations

import math

from d2_ext.errors import ConfigError
from d2_ext.modeling.losses.iou import box_giou_loss, elementwise_iou, ltrb_iou_loss, pairwise_iou

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss


def test_losses_of_nested_boxes_by_hand() -> None:
    # Target 2 x 2 inside predicted 4 x 2: IoU 4 / 8, hull 8, so GIoU = IoU = 1/2.
    pred, target = torch.tensor([[2.0, 1.0, 2.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    for kind, expected in {"giou": 0.5, "linear_iou": 0.5, "iou": math.log(2)}.items():
        loss, iou = ltrb_iou_loss(pred, target, kind)
        assert loss.item() == pytest.approx(expected)
        assert iou.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("side", "plain", "smoothed"), [(0.75, 0.5556, 0.3846), (0.0, 1.0, 0.5)])
def test_smoothing_is_mild_to_small_boxes(side: float, plain: float, smoothed: float) -> None:
    # Target 1 x 1; predicted 1.5 x 1.5: 1 - 1 / 2.25 and 1 - 2 / 3.25; predicted 0 x 0: 1 - 0 / 1 and 1 - 1 / 2.
    pred, target = torch.full((1, 4), side), torch.full((1, 4), 0.5)
    assert ltrb_iou_loss(pred, target, "linear_iou")[0].item() == pytest.approx(plain, abs=1e-4)
    assert ltrb_iou_loss(pred, target, "linear_iou", smooth=True)[0].item() == pytest.approx(smoothed, abs=1e-4)


def test_both_forms_of_giou_agree_with_torchvision() -> None:
    pred, target = torch.rand(20, 4) * 9 + 0.1, torch.rand(20, 4) * 9 + 0.1
    as_boxes = [torch.cat([-x[:, :2], x[:, 2:]], dim=1) for x in (pred, target)]
    expected = generalized_box_iou_loss(*as_boxes)
    torch.testing.assert_close(ltrb_iou_loss(pred, target)[0], expected)
    torch.testing.assert_close(box_giou_loss(*as_boxes), expected)


def test_apart_boxes_have_giou_below_zero() -> None:
    # Two unit squares with a gap of one: hull 3, GIoU = 0 - 1/3.
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]])
    assert box_giou_loss(boxes[:1], boxes[1:]).item() == pytest.approx(4 / 3)
    assert elementwise_iou(boxes[:1], boxes[1:]).item() == 0


def test_boxes_without_area_overlap_nothing_and_give_finite_gradients() -> None:
    flat = torch.zeros(1, 4, requires_grad=True)
    for kind in ("giou", "linear_iou", "iou"):
        (gradient,) = torch.autograd.grad(ltrb_iou_loss(flat, torch.ones(1, 4), kind)[0].sum(), flat)
        assert gradient.isfinite().all(), kind
    assert elementwise_iou(flat.detach(), flat.detach()).tolist() == [0.0]
    assert pairwise_iou(flat.detach(), flat.detach()).tolist() == [[0.0]]


def test_no_positives_keep_the_graph() -> None:
    pred = torch.zeros(0, 4, requires_grad=True)
    ltrb_iou_loss(pred, torch.zeros(0, 4))[0].sum().backward()
    assert pred.grad is not None


def test_an_unknown_loss_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'giou'"):
        ltrb_iou_loss(torch.ones(1, 4), torch.ones(1, 4), "gious")
