"""Masks that learn: which objects they let through, and that they do not close before the towers have learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.point_scenes import image, instances, tiny_model

SPARSE_FCOS = ("MODEL.FCOS.SPARSE", True, "MODEL.CEASC.NORM_GROUPS", 8)
BOXES, CLASSES = [[8, 8, 40, 40], [60, 20, 90, 70]], [0, 3]


def set_masks(model: nn.Module, cls: float, reg: float) -> None:
    """Masks that are open (logit >= 0) or closed everywhere."""
    for tower, bias in ((model.head.cls_tower, cls), (model.head.reg_tower, reg)):
        nn.init.zeros_(tower.mask_conv.weight)
        nn.init.constant_(tower.mask_conv.bias, bias)


@pytest.mark.parametrize(
    ("cls", "reg", "seen", "active"), [(1, 1, True, 1.0), (1, -1, False, 0.5), (-1, 1, False, 0.5), (-1, -1, False, 0)]
)
def test_an_object_is_seen_where_both_branches_are_active(cls: float, reg: float, seen: bool, active: float) -> None:
    model = tiny_model("FCOS", *SPARSE_FCOS).eval()
    set_masks(model, cls, reg)
    results = model([image(BOXES, CLASSES), image([], [])])
    with_objects, without = (result["seen_objects"] for result in results)
    assert with_objects.assigned.tolist() == [True, True]
    assert with_objects.seen.tolist() == [seen, seen]
    assert with_objects.active == pytest.approx(active)
    assert len(without.seen) == 0


@pytest.mark.parametrize(
    "detector",
    [
        ("DeFCN", "MODEL.DEFCN.SPARSE", True, "MODEL.DEFCN.FILTER.MAX_POOLING", False, "MODEL.CEASC.NORM_GROUPS", 8),
        ("FCOS", *SPARSE_FCOS),
    ],
    ids=lambda detector: detector[0],
)
def test_the_objects_that_are_seen_are_those_with_an_active_location(detector: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    model = tiny_model(*detector).eval()
    for tower in (model.head.cls_tower, model.head.reg_tower):
        nn.init.normal_(tower.mask_conv.weight, std=0.5)
    batch = [image(BOXES, CLASSES), image(BOXES[:1], CLASSES[:1])]
    for item, result in zip(batch, model(batch), strict=True):
        found = result["seen_objects"]
        features = model.features(model.preprocess_image([item]).tensor)
        output = model.head(features)
        objects = model.find_targets(features, output, [item["instances"]]).objects[0].tolist()
        cls, reg = ([a for m in masks for a in m.active.flatten().tolist()] for masks in output.sparsity.masks.values())
        for number in range(len(item["instances"])):
            places = [place for place, owner in enumerate(objects) if owner == number]
            assert found.assigned[number].item() == bool(places)
            assert found.seen[number].item() == any(cls[place] and reg[place] for place in places)


def test_without_objects_in_the_inputs_nothing_is_said_of_them() -> None:
    model = tiny_model("FCOS", *SPARSE_FCOS).eval()
    item = image(BOXES, CLASSES)
    objects = item.pop("instances")
    assert set(model([item])[0]) == {"instances"}
    assert set(tiny_model("FCOS").eval()([{**item, "instances": objects}])[0]) == {"instances"}  # a dense head


def tiny_objects(generator: torch.Generator) -> dict[str, Any]:
    """A noisy image of 128x128 px with two bright squares of 8 px: one position in a hundred has an object."""
    pixels = torch.randint(100, 140, (3, 128, 128), generator=generator, dtype=torch.uint8)
    corners = torch.randint(4, 116, (2, 2), generator=generator).tolist()
    for x, y in corners:
        pixels[:, y : y + 8, x : x + 8] = 250
    return {"image": pixels, "instances": instances([[x, y, x + 8, y + 8] for x, y in corners], [0, 1], (128, 128))}


@pytest.mark.parametrize(("mask_loss_weight", "recall"), [(0.0, 0.0), (1.0, 1.0)], ids=["paper", "default"])
def test_the_box_mask_of_tiny_objects_closes_at_all_of_them_with_the_papers_losses_alone(
    mask_loss_weight: float, recall: float
) -> None:
    # With the paper's losses nothing asks the box branch for activity: the base box is good enough at first, so that
    # the norm loss and the ratio loss close it; then no position learns a box. This is what the mask loss is for.
    torch.manual_seed(0)
    model = tiny_model("FCOS", *SPARSE_FCOS, "MODEL.CEASC.MASK_LOSS_WEIGHT", mask_loss_weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    with EventStorage() as storage:
        for _ in range(100):
            losses = model([tiny_objects(generator) for _ in range(4)])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        assert storage.latest()["mask_recall/reg"][0] == recall
    found = [result["seen_objects"] for result in model.eval()([tiny_objects(generator) for _ in range(8)])]
    assigned = torch.cat([f.assigned for f in found])
    assert torch.cat([f.seen for f in found])[assigned].float().mean().item() == recall
