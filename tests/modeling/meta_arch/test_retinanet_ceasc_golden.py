"""RetinaNet-CEASC against outputs of the authors' code (skipped where they are not at hand)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from helpers.ceasc_golden import (
    PERM,
    anchor_generator,
    golden_head,
    golden_model,
    golden_noise,
    permuted,
    permuted_maps,
    renamed,
)
from helpers.golden import load


@pytest.fixture
def forward_case(golden: Path) -> dict[str, Any]:
    return load(golden, "ceasc_retina_train_fwd")


@pytest.fixture
def loss_case(golden: Path) -> dict[str, Any]:
    return load(golden, "ceasc_retina_train_loss")


def ground_truth(case: dict[str, Any]) -> list[Instances]:
    out = []
    for boxes, labels, meta in zip(case["gt_bboxes"], case["gt_labels"], case["img_metas"]):
        instances = Instances(tuple(meta["img_shape"][:2]))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = labels
        out.append(instances)
    return out


def batch(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"image": torch.zeros(3, *x.image_size), "instances": x} for x in ground_truth(case)]


def anchors_in_our_order(flat: Tensor) -> Tensor:
    """(N, H*W*9, ...) of the reference with the nine anchors permuted."""
    return flat.unflatten(1, (-1, 9))[:, :, PERM].flatten(1, 2)


def test_anchors_agree_with_the_reference(golden: Path) -> None:
    case = load(golden, "ceasc_anchors")
    generator = anchor_generator("retina", (8, 16, 32, 64, 128))
    anchors = generator([torch.zeros(1, 1, 3, 4)] * 5)
    for ours, theirs in zip(anchors, case["grid_3x4"]):
        expected = theirs.view(-1, 9, 4)[:, PERM].reshape(-1, 4)
        torch.testing.assert_close(ours.tensor, expected, rtol=1e-6, atol=1e-5)


def test_forward_in_training_agrees_with_the_reference(golden: Path, forward_case: dict[str, Any]) -> None:
    head = golden_head(golden, "retina").train()
    out = head(forward_case["feats"], golden_noise("retina", forward_case))
    for branch in ("cls", "reg"):
        for ours, theirs in zip(out.sparsity.masks[branch], forward_case["masks"][f"retina_{branch}_mask"]):
            assert torch.equal(ours.active, theirs.round())
    for ours, key in ((out.logits.maps(), "cls_score"), (out.boxes.maps(), "bbox_pred")):
        for level, expected in zip(ours, permuted_maps(forward_case[key])):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=3e-6)
    expected_norm = torch.tensor(forward_case["mse_losses"]).mean()
    torch.testing.assert_close(out.sparsity.norm_loss, expected_norm, rtol=1e-5, atol=0)


def test_targets_agree_with_the_reference(
    golden: Path, forward_case: dict[str, Any], loss_case: dict[str, Any]
) -> None:
    model = golden_model(golden, "retina", forward_case["feats"])
    anchors = model.anchor_generator(forward_case["feats"])
    found = model.assign(anchors, ground_truth(loss_case))
    labels, boxes = found.labels, found.boxes
    targets = loss_case["targets"]
    ignored = anchors_in_our_order(torch.cat(targets["label_weights"], 1)) == 0
    expected = anchors_in_our_order(torch.cat(targets["labels"], 1)).masked_fill(ignored, -1)
    # per level, because the permutation is within each position
    assert torch.equal(labels, expected)
    positive = (labels >= 0) & (labels < 4)
    assert int(positive.sum()) == targets["num_total_pos"]
    flat_anchors = Boxes.cat(anchors).tensor.expand(2, -1, -1)
    deltas = model.box2box_transform.get_deltas(flat_anchors[positive], boxes[positive])
    expected_deltas = anchors_in_our_order(torch.cat(targets["bbox_targets"], 1))[positive]
    torch.testing.assert_close(deltas, expected_deltas, rtol=1e-5, atol=1e-6)


def train_once(golden: Path, forward_case: dict[str, Any], loss_case: dict[str, Any]) -> tuple[Any, dict, dict, list]:
    features = [f.clone().requires_grad_() for f in forward_case["feats"]]
    model = golden_model(golden, "retina", features).train()
    noise = golden_noise("retina", forward_case)
    plain_forward = model.head.forward
    model.head.forward = lambda x: plain_forward(x, noise)
    with EventStorage() as storage:
        losses = model(batch(loss_case))
        return model, losses, {k: v[0] for k, v in storage.latest().items()}, features


def test_losses_agree_with_the_reference(golden: Path, forward_case: dict[str, Any], loss_case: dict[str, Any]) -> None:
    _, losses, scalars, _ = train_once(golden, forward_case, loss_case)
    expected = loss_case["losses"]
    values = {k: v.item() for k, v in losses.items()}
    assert values["loss_cls"] == pytest.approx(sum(expected["loss_cls"]), rel=1e-5)
    assert values["loss_box_reg"] == pytest.approx(sum(expected["loss_bbox"]), rel=1e-5)
    assert values["loss_norm"] == pytest.approx(expected["loss_gn"], rel=1e-5)
    assert values["loss_ratio"] == pytest.approx(expected["loss_cost"], rel=1e-5)
    assert sum(values.values()) == pytest.approx(loss_case["total"], rel=1e-5)
    for level, expected_target in zip(("p3", "p4", "p5"), loss_case["target_ratio_per_level"]):
        assert scalars[f"mask_ratio/{level}_target"] == pytest.approx(expected_target, rel=1e-6)
    assert scalars["mask_ratio/p3_cls"] == pytest.approx(202 / 640, rel=1e-6)


def test_gradients_agree_with_the_reference(
    golden: Path, forward_case: dict[str, Any], loss_case: dict[str, Any]
) -> None:
    model, losses, _, features = train_once(golden, forward_case, loss_case)
    sum(losses.values()).backward()
    ours = {k: p.grad for k, p in model.head.named_parameters()}
    for key, expected in loss_case["grad_params"].items():
        expected = permuted(key, expected)
        difference = (ours[renamed(key)] - expected).abs().max() / expected.abs().max()
        assert difference < 2e-5, (key, difference)
    for x, expected in zip(features, loss_case["grad_feats"]):
        torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("loss", "key"), [("loss_ratio", "loss_cost"), ("loss_norm", "loss_gn")])
def test_each_sparsity_loss_alone_gives_the_masks_the_reference_gradient(
    golden: Path, forward_case: dict[str, Any], loss_case: dict[str, Any], loss: str, key: str
) -> None:
    model, losses, _, _ = train_once(golden, forward_case, loss_case)
    losses[loss].backward()
    ours = {k: p.grad for k, p in model.head.named_parameters()}
    for name, expected in loss_case["aux_grads"][key].items():
        torch.testing.assert_close(ours[renamed(name)], expected, rtol=1e-3, atol=1e-5)


def test_sparse_inference_agrees_with_the_dense_reference_path(golden: Path, forward_case: dict[str, Any]) -> None:
    head = golden_head(golden, "retina").eval()
    features = forward_case["feats"]
    with torch.no_grad():
        sparse = head(features)
        dense_cls = head.cls_tower.forward_dense(features, sparse.sparsity.masks["cls"]).predictions["logits"]
        dense_reg = head.reg_tower.forward_dense(features, sparse.sparsity.masks["reg"]).predictions["deltas"]
    assert 0.1 < sparse.logits.values.shape[0] / sparse.logits.layout.num_rows < 0.6
    torch.testing.assert_close(sparse.logits.dense(), dense_cls.dense(), rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(sparse.boxes.dense(), dense_reg.dense(), rtol=1e-5, atol=5e-6)
