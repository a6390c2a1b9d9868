"""ATSS: hand-made cases, and the definition in plain loops."""

from __future__ import annotations

from d2_ext.modeling.assigners.atss import assign_atss

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou


def square_anchors(height: int, width: int, stride: float, scale: float = 8.0) -> Tensor:
    """Anchors of scale * stride around (column, row) * stride, row-major."""
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    centers = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
    half = scale * stride / 2
    return torch.cat([centers - half, centers + half], dim=1)


def by_definition(anchors: Tensor, counts: list[int], boxes: Tensor, topk: int) -> list[int]:
    """Algorithm 1 of the paper, box by box and anchor by anchor."""
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    best = [(-1.0, -1)] * len(anchors)
    for number, box in enumerate(boxes):
        candidates, start = [], 0
        for count in counts:
            distance = (centers[start : start + count] - (box[:2] + box[2:]) / 2).norm(dim=1)
            candidates += (distance.argsort(stable=True)[:topk] + start).tolist()
            start += count
        overlap = box_iou(anchors[candidates], box[None])[:, 0]
        threshold = overlap.mean() + overlap.std()
        for anchor, value in zip(candidates, overlap.tolist()):
            x, y = centers[anchor].tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and inside and value > best[anchor][0]:
                best[anchor] = (value, number)
    return [number for _, number in best]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("topk", [3, 9])
def test_it_equals_the_definition_on_random_boxes(seed: int, topk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.cat([square_anchors(12, 16, 8), square_anchors(6, 8, 16), square_anchors(3, 4, 32)])
    counts = [12 * 16, 6 * 8, 3 * 4]
    corner = torch.rand(90, 2, generator=generator) * torch.tensor([120.0, 90.0])  # more than one chunk of boxes
    boxes = torch.cat([corner, corner + 2 + 60 * torch.rand(90, 2, generator=generator)], dim=1)
    assert assign_atss(anchors, counts, boxes, topk=topk).tolist() == by_definition(anchors, counts, boxes, topk)


def test_threshold_is_mean_plus_unbiased_deviation() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [4, 0, 14, 10]])
    box = torch.tensor([[0.0, 0, 10, 10]])
    # IoU 1, 9/11, 8/12, 6/14: mean 0.7284, deviation 0.2416 (unbiased), so only the first; biased 0.2092 also
    assert assign_atss(anchors, [4], box, topk=4).tolist() == [0, -1, -1, -1]
    # candidates 1 and 9/11 only: mean 0.9091, deviation 0.1286: 1.0377 is out of reach
    assert assign_atss(anchors, [4], box, topk=2).tolist() == [-1, -1, -1, -1]


def test_centres_on_the_border_are_outside() -> None:
    anchors = torch.tensor([[-5.0, -5, 5, 5], [-50, -50, -40, -40]])
    inside, border = torch.tensor([[-0.02, -5.0, 9.98, 5]]), torch.tensor([[0.0, -5, 10, 5]])
    # two candidates of IoU a and 0: a misses mean + deviation = a/2 + a/sqrt 2, so each level has one of them
    assert assign_atss(anchors, [1, 1], inside, topk=1).tolist() == [-1, -1]
    assert assign_atss(anchors[:1], [1], inside, topk=1).tolist() == [0]
    assert assign_atss(anchors[:1], [1], border, topk=1).tolist() == [-1]


def test_a_contested_anchor_goes_to_the_larger_overlap_then_to_the_first_box() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 8], [0, 0, 10, 9], [0, 1, 10, 10]])
    assert assign_atss(anchor, [1], boxes, topk=1).tolist() == [1]
    assert assign_atss(anchor, [1], boxes[[0, 2, 1]], topk=1).tolist() == [1]


def test_without_boxes_or_anchors_nothing_is_assigned() -> None:
    anchors = square_anchors(2, 3, 8)
    assert assign_atss(anchors, [6], torch.zeros(0, 4)).tolist() == [-1] * 6
    assert assign_atss(anchors[:0], [0, 0], torch.ones(2, 4)).tolist() == []


def test_a_box_far_from_all_anchors_gets_none() -> None:
    anchors = square_anchors(2, 3, 8)
    assert (assign_atss(anchors, [6], torch.tensor([[500.0, 500, 510, 510]])) == -1).all()
