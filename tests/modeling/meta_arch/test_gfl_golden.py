"""GFL-CEASC against outputs of the authors' code (skipped where they are not at hand)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from helpers.ceasc_golden import golden_head, golden_model, golden_noise
from helpers.golden import load

# Two images, the second one smaller than the batch; figures below were measured with the authors' code on them.
SIZES = [(120, 155), (96, 124)]


@pytest.fixture
def forward_case(golden: Path) -> dict[str, Any]:
    return load(golden, "ceasc_gfl_train_fwd")


def ground_truth(golden: Path) -> list[Instances]:
    case = load(golden, "ceasc_retina_train_loss")  # the same images and boxes
    return [
        Instances(size, gt_boxes=Boxes(boxes), gt_classes=labels)
        for size, boxes, labels in zip(SIZES, case["gt_bboxes"], case["gt_labels"])
    ]


def test_forward_in_training_agrees_with_the_reference(golden: Path, forward_case: dict[str, Any]) -> None:
    out = golden_head(golden, "gfl").train()(forward_case["feats"], golden_noise("gfl", forward_case))
    for branch in ("cls", "reg"):
        for ours, theirs in zip(out.sparsity.masks[branch], forward_case["masks"][f"gfl_{branch}_mask"]):
            assert torch.equal(ours.active, theirs.round())
    for ours, key in ((out.logits.maps(), "cls_score"), (out.boxes.maps(), "bbox_pred")):
        for level, expected in zip(ours, forward_case[key]):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=3e-6)
    expected_norm = torch.tensor(forward_case["mse_losses"]).mean()
    torch.testing.assert_close(out.sparsity.norm_loss, expected_norm, rtol=1e-5, atol=0)


def test_losses_agree_with_the_reference(golden: Path, forward_case: dict[str, Any]) -> None:
    model = golden_model(golden, "gfl", forward_case["feats"]).train()
    noise, plain_forward = golden_noise("gfl", forward_case), model.head.forward
    model.head.forward = lambda x: plain_forward(x, noise)
    truth = ground_truth(golden)
    with EventStorage() as storage:
        losses = model([{"image": torch.zeros(3, *x.image_size), "instances": x} for x in truth])
        scalars = {k: v[0] for k, v in storage.latest().items()}
    values = {k: v.item() for k, v in losses.items()}
    assert values["loss_cls"] == pytest.approx(0.39023 + 0.06952 + 0.01646, abs=2e-5)
    assert values["loss_box_reg"] == pytest.approx(1.74005 + 0.07380, abs=2e-5)
    assert values["loss_dfl"] == pytest.approx(0.68904 + 0.03236, abs=2e-5)
    assert values["loss_ratio"] == pytest.approx(0.108482, abs=1e-6)
    assert values["loss_norm"] == pytest.approx(0.875266, abs=1e-6)
    assert scalars["mask_ratio/p3_cls"] == pytest.approx(191 / 640)
    assert scalars["mask_ratio/p5_reg"] == pytest.approx(20 / 40)


def test_sparse_inference_agrees_with_the_dense_reference_path(golden: Path, forward_case: dict[str, Any]) -> None:
    head = golden_head(golden, "gfl").eval()
    features = forward_case["feats"]
    with torch.no_grad():
        sparse = head(features)
        logits = head.cls_tower.forward_dense(features, sparse.sparsity.masks["cls"]).predictions["logits"]
        sides = head.reg_tower.forward_dense(features, sparse.sparsity.masks["reg"]).predictions["distributions"]
    assert 0.1 < sparse.logits.values.shape[0] / sparse.logits.layout.num_rows < 0.6
    torch.testing.assert_close(sparse.logits.dense(), logits.dense(), rtol=1e-5, atol=5e-6)
    scaled = [m * s.scale for m, s in zip(sides.maps(), head.scales)]
    torch.testing.assert_close(sparse.boxes.dense(), sides.layout.flatten(scaled), rtol=1e-5, atol=1e-5)
