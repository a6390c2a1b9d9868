"""Sparse towers under FCOS and DeFCN: sparse inference equals the masked dense definition, and all of it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.modeling.heads.sparse_point_head import BOX_BASE

import pytest
import torch
from detectron2.utils.events import EventStorage
from point_scenes import STRIDES, image, tiny_model
from torch import nn

SPARSE = {
    "FCOS": ("FCOS", "MODEL.FCOS.SPARSE", True, "MODEL.FCOS.SCORE_THRESH_TEST", 0.002),
    "DeFCN": ("DeFCN", "MODEL.DEFCN.SPARSE", True, "MODEL.DEFCN.SCORE_THRESH_TEST", 0.002),
    "DeFCN aux": ("DeFCN", "MODEL.DEFCN.SPARSE", True, "MODEL.DEFCN.AUX_LOSS.ENABLED", True),
    "DeFCN filter": (
        *("DeFCN", "MODEL.DEFCN.SPARSE", True, "MODEL.DEFCN.AUX_LOSS.ENABLED", True),
        *("MODEL.DEFCN.FILTER.ENABLED", True, "MODEL.DEFCN.FILTER.MAX_POOLING", False),
    ),
}
SOME = [[10.0, 12.0, 50.0, 60.0], [70.0, 20.0, 120.0, 90.0]]


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with EventStorage() as events:
        yield events


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("boxes", [SOME, []], ids=["objects", "empty"])
def test_sparse_towers_train_with_the_losses_of_ceasc(name: str, boxes: Any, storage: EventStorage) -> None:
    model = tiny_model(*SPARSE[name])
    losses = model([image(boxes, [0, 3][: len(boxes)]), image([], [])])
    sum(losses.values()).backward()
    assert {"loss_cls", "loss_box_reg", "loss_norm", "loss_ratio"} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    latest = storage.latest()
    assert 0.2 < latest["mask_ratio/cls"][0] < 0.8  # about half of all positions start active under noise
    assert latest["mask_ratio/target"][0] < 0.05


def randomise_masks(model: nn.Module, bias: float) -> None:
    for tower in (model.head.cls_tower, model.head.reg_tower):
        nn.init.normal_(tower.mask_conv.weight, std=0.5)
        nn.init.constant_(tower.mask_conv.bias, bias)


@torch.no_grad()
def test_sparse_inference_equals_the_dense_definition() -> None:
    model = tiny_model(*SPARSE["FCOS"]).eval()
    randomise_masks(model, bias=-0.5)
    head = model.head
    features = [torch.randn(2, 64, max(96 // s, 1), max(128 // s, 1)) for s in STRIDES]
    predictions, output = head(features)
    active = sum(mask.sum() for mask in output.masks["cls"]) / sum(mask.numel() for mask in output.masks["cls"])
    assert 0.1 < active < 0.9
    dense = head.cls_tower.forward_dense(features, output.masks["cls"]).predictions["logits"].maps()
    for ours, reference in zip(predictions.logits, dense, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    boxes = head.reg_tower.forward_dense(features, output.masks["reg"]).predictions["boxes"].maps()
    for level, (ours, raw) in enumerate(zip(predictions.distances, boxes, strict=True)):
        torch.testing.assert_close(ours, head.distances(raw, level), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_scores_of_sparse_defcn_are_class_times_filter_probability_at_active_positions() -> None:
    model = tiny_model(*SPARSE["DeFCN filter"], "MODEL.DEFCN.SCORE_THRESH_TEST", 1e-6).eval()
    randomise_masks(model, bias=0.0)
    item = image([], [])
    features = model.backbone(model.preprocess_image([item]).tensor)
    predictions, output = model.head([features[name] for name in model.head_in_features])
    products = [(x.sigmoid() * f.sigmoid()).flatten() for x, f in zip(predictions.logits, predictions.quality)]
    best = torch.cat(products).topk(5).values
    torch.testing.assert_close(model([item])[0]["instances"].scores[:5], best)
    for f, mask in zip(predictions.quality, output.masks["reg"], strict=True):
        assert (f[mask == 0] == 0).all()  # an inactive position halves the class probability


@pytest.mark.parametrize(("bias", "share"), [(-50.0, 0.0), (50.0, 1.0)])
def test_empty_and_full_masks_work_and_are_shown(bias: float, share: float) -> None:
    model = tiny_model(*SPARSE["DeFCN"]).eval()
    randomise_masks(model, bias)
    item = image([], [], size=(70, 100))
    with torch.no_grad():
        found = model([item])[0]["instances"]
        predictions, _ = model.head([torch.randn(1, 64, 2, 2) for _ in STRIDES])
    masks = model.activation_masks([item])[0]
    assert masks["p3"]["cls"].shape == (9, 13)  # ceil(70 / 8), ceil(100 / 8)
    assert masks["p3"]["cls"].float().mean() == share
    if share == 0:
        assert len(found) == 0
        assert (predictions.distances[1] == BOX_BASE * STRIDES[1]).all()


def test_detections_do_not_depend_on_the_other_images_of_the_batch() -> None:
    model = tiny_model(*SPARSE["DeFCN"]).eval()
    batch = [image([], [], size=size) for size in ((96, 128), (64, 64), (96, 128))]
    with torch.no_grad():
        together = model(batch)
        alone = [model([item])[0] for item in batch]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores)


def test_only_sparse_models_have_activation_masks() -> None:
    assert not hasattr(tiny_model("FCOS"), "activation_masks")
    assert hasattr(tiny_model(*SPARSE["FCOS"]), "activation_masks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("FCOS", "MODEL.FCOS.SPARSE", True, "MODEL.FCOS.BOX_ACTIVATION", "exp"), "BOX_ACTIVATION 'exp'"),
        (("FCOS", "MODEL.FCOS.SPARSE", True, "MODEL.FCOS.DEFORM_LAST_CONV", True), "DEFORM_LAST_CONV"),
        (("DeFCN", "MODEL.DEFCN.SPARSE", True, "MODEL.DEFCN.FILTER.ENABLED", True), r"FILTER\.MAX_POOLING"),
    ],
)
def test_what_sparse_towers_cannot_do_is_refused(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"SPARSE does not go together with .*{message}"):
        tiny_model(*options)
