"""Sparse towers under FCOS and DeFCN: sparse inference equals the masked dense definition, and all of it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.gumbel import Mask
from d2_ext.layers.sparse.position_norm import PositionNorm
from d2_ext.modeling.heads.base import SparseOutput
from d2_ext.modeling.heads.sparse import BOX_BASE
from d2_ext.modeling.meta_arch.sparsity import CE_GN_KEYS, RETINANET_KEYS, Sparsity

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.point_scenes import STRIDES, image, tiny_cfg, tiny_model

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
    assert {"loss_cls", "loss_box_reg", "loss_norm", "loss_ratio", "loss_mask"} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    latest = storage.latest()
    assert 0.2 < latest["mask_ratio/cls"][0] < 0.8  # about half of all positions start active under noise
    assert latest["mask_ratio/target"][0] < 0.05


@pytest.mark.parametrize("channels", [0, 5])
@pytest.mark.parametrize("is_open", [False, True])
def test_the_mask_loss_reaches_the_features_unless_towers_are_open(channels: int, is_open: bool) -> None:
    options = ("MODEL.CEASC.OPEN_IN_TRAINING", is_open, "MODEL.CEASC.MASK_CHANNELS", channels)
    head = tiny_model(*SPARSE["FCOS"], *options).head
    features = [torch.randn(2, 64, 96 // s, 128 // s).requires_grad_() for s in STRIDES[:2]]
    masks = head.masks(features)
    sum(mask.logits.sum() for branch in masks.values() for mask in branch).backward()
    assert all((x.grad is None) == is_open for x in features)
    assert all(tower.mask_conv.weight.grad.abs().sum() > 0 for tower in head.towers().values())
    assert channels == 0 or head.mask_stem.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_masks_with_a_layer_of_their_own_are_the_same_in_training_and_inference() -> None:
    head = tiny_model(*SPARSE["FCOS"], "MODEL.CEASC.MASK_CHANNELS", 5).head
    features = [torch.randn(2, 64, 96 // s, 128 // s) for s in STRIDES[:2]]
    trained = head.train().masks(features)
    masks = head.eval().masks(features)
    for level, x in enumerate(features):
        read = head.mask_stem(x).relu()
        for branch, tower in head.towers().items():
            for found in (trained, masks):
                torch.testing.assert_close(found[branch][level].logits, tower.mask_conv(read), rtol=1e-4, atol=1e-5)
            assert torch.equal(masks[branch][level].active, (masks[branch][level].logits >= 0).float())


@pytest.mark.parametrize("name", SPARSE)
def test_towers_that_are_open_in_training_train_as_a_whole(name: str) -> None:
    options = ("MODEL.CEASC.NORM", "LN", "MODEL.CEASC.OPEN_IN_TRAINING", True, "MODEL.CEASC.MASK_CHANNELS", 6)
    model = tiny_model(*SPARSE[name], *options)
    batch = [image(SOME, [0, 3]), image([], [])]
    losses = model(batch)
    sum(losses.values()).backward()
    assert "loss_norm" not in losses
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    # What the detector learns does not depend on the masks.
    randomize_masks(model, -100.0)
    again = model(batch)
    for key in ("loss_cls", "loss_box_reg"):
        torch.testing.assert_close(again[key], losses[key])


def randomize_masks(model: nn.Module, bias: float) -> None:
    for tower in (model.head.cls_tower, model.head.reg_tower):
        nn.init.normal_(tower.mask_conv.weight, std=0.5)
        nn.init.constant_(tower.mask_conv.bias, bias)


@torch.no_grad()
def test_sparse_inference_equals_the_dense_definition() -> None:
    model = tiny_model(*SPARSE["FCOS"]).eval()
    randomize_masks(model, bias=-0.5)
    head = model.head
    features = [torch.randn(2, 64, max(96 // s, 1), max(128 // s, 1)) for s in STRIDES]
    output = head(features)
    masks = output.sparsity.masks
    active = sum(m.active.sum() for m in masks["cls"]) / sum(m.active.numel() for m in masks["cls"])
    assert 0.1 < active < 0.9
    dense = head.cls_tower.forward_dense(features, masks["cls"]).predictions["logits"].maps()
    for ours, reference in zip(output.logits.maps(), dense, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    boxes = head.reg_tower.forward_dense(features, masks["reg"]).predictions["boxes"].maps()
    for level, (ours, raw) in enumerate(zip(output.boxes.maps(), boxes, strict=True)):
        torch.testing.assert_close(ours, head.finish_map(raw, level), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_scores_of_sparse_defcn_are_class_times_filter_probability_at_active_positions() -> None:
    model = tiny_model(*SPARSE["DeFCN filter"], "MODEL.DEFCN.SCORE_THRESH_TEST", 1e-6).eval()
    randomize_masks(model, bias=0.0)
    item = image([], [])
    features = model.backbone(model.preprocess_image([item]).tensor)
    output = model.head([features[name] for name in model.head_in_features])
    quality = output.quality.maps()
    products = [(x.sigmoid() * f.sigmoid()).flatten() for x, f in zip(output.logits.maps(), quality)]
    best = torch.cat(products).topk(5).values
    torch.testing.assert_close(model([item])[0]["instances"].scores[:5], best)
    for f, mask in zip(quality, output.sparsity.masks["reg"], strict=True):
        assert (f[mask.active == 0] == 0).all()  # an inactive position halves the class probability


@pytest.mark.parametrize(("bias", "share"), [(-50.0, 0.0), (50.0, 1.0)])
def test_empty_and_full_masks_work_and_are_shown(bias: float, share: float) -> None:
    model = tiny_model(*SPARSE["DeFCN"]).eval()
    randomize_masks(model, bias)
    item = image([], [], size=(70, 100))
    with torch.no_grad():
        found = model([item])[0]["instances"]
        output = model.head([torch.randn(1, 64, 2, 2) for _ in STRIDES])
    masks = model.activation_masks([item])[0]
    assert masks["p3"]["cls"].shape == (9, 13)  # ceil(70 / 8), ceil(100 / 8)
    assert masks["p3"]["cls"].float().mean() == share
    if share == 0:
        assert len(found) == 0
        assert (output.boxes.maps()[1] == BOX_BASE * STRIDES[1]).all()


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
        (("FCOS", "MODEL.FCOS.SPARSE", True, "MODEL.FCOS.NORM", "LN"), "NORM 'LN'"),
        (("DeFCN", "MODEL.DEFCN.SPARSE", True, "MODEL.DEFCN.FILTER.ENABLED", True), r"FILTER\.MAX_POOLING"),
    ],
)
def test_what_sparse_towers_cannot_do_is_refused(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"SPARSE does not go together with .*{message}"):
        tiny_model(*options)


@pytest.mark.parametrize("key", RETINANET_KEYS)
@pytest.mark.parametrize("name", ["FCOS", "DeFCN"])
def test_keys_that_would_do_nothing_are_refused(name: str, key: str) -> None:
    other = {
        "REG_BASE": 0.5,
        "LOSS_NORMALIZER": "moving_average",
        "LOW_QUALITY_MATCHES": "keep",
        "PRE_NMS_UNIT": "pair",
    }
    assert tiny_cfg(name).MODEL.CEASC[key] == RETINANET_KEYS[key], "the default is what nobody has set"
    tiny_model(name, f"MODEL.CEASC.{key}", other[key])  # a dense detector reads nothing of MODEL.CEASC
    with pytest.raises(ConfigError, match=f"MODEL.CEASC.{key} is .* only RetinaNetCEASC reads it"):
        tiny_model(*SPARSE[name], f"MODEL.CEASC.{key}", other[key])


@pytest.mark.parametrize("key", CE_GN_KEYS)
def test_keys_of_ce_gn_are_refused_beside_another_norm(key: str) -> None:
    other = {"NORM_GROUPS": 8, "UNBIASED_VARIANCE": False, "NORM_LOSS_WEIGHT": 0.1, "NORM_LOSS_TARGET": "conv"}
    assert tiny_cfg("FCOS").MODEL.CEASC[key] == CE_GN_KEYS[key], "the default is what nobody has set"
    with pytest.raises(ConfigError, match=f"MODEL.CEASC.{key} is .* only CE-GN reads it"):
        tiny_model(*SPARSE["FCOS"], "MODEL.CEASC.NORM", "LN", f"MODEL.CEASC.{key}", other[key])


def test_the_norm_of_a_dense_twin_may_be_that_of_the_sparse_towers() -> None:
    model = tiny_model(*SPARSE["FCOS"], "MODEL.FCOS.NORM", "LN", "MODEL.CEASC.NORM", "LN")
    assert isinstance(model.head.cls_tower.layers[0].norm, PositionNorm)


@torch.no_grad()
def test_boxes_without_a_class_are_left_out_where_no_score_can_reach_the_threshold() -> None:
    model = tiny_model(*SPARSE["FCOS"]).eval()
    randomize_masks(model, bias=0.0)
    features = [torch.randn(1, 64, max(96 // s, 1), max(128 // s, 1)) for s in STRIDES]
    needed: list[object] = []
    model.head.reg_tower.register_forward_pre_hook(lambda _, inputs: needed.append(inputs[2]))
    every = model.head.predict(features, 1e-4)  # below sigmoid(-8)
    some = model.head.predict(features, 0.05)
    assert needed[0] is None
    assert all(isinstance(mask, Mask) for mask in needed[1])
    rows = some.logits.index
    torch.testing.assert_close(some.boxes.at(rows), every.boxes.at(rows), rtol=1e-4, atol=1e-4)


def test_masks_logits_and_objects_of_a_training_step_meet_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, torch.Tensor]] = []

    def losses(
        self: Sparsity, output: SparseOutput, layout: object, positive: torch.Tensor, ignored: object, names: object
    ) -> dict:
        seen.append((output, positive))
        return {}

    monkeypatch.setattr(Sparsity, "losses", losses)
    model = tiny_model(*SPARSE["DeFCN"])
    model([image(SOME, [0, 3])])
    ((output, positive),) = seen
    cells = [12 * 16, 6 * 8, 3 * 4, 2 * 2, 1]
    assert positive.shape == (1, sum(cells))
    assert int(positive.sum()) == len(SOME)
    for branch in ("cls", "reg"):
        assert [mask.active.numel() for mask in output.masks[branch]] == cells
        assert all(
            mask.logits.shape == mask.active.shape and mask.logits.requires_grad for mask in output.masks[branch]
        )
