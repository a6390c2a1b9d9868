"""RetinaNet and the dense template, by hand; on either implementation of Detectron2."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import RetinaNet, build_model, detector_postprocess
from detectron2.modeling.meta_arch import DenseDetector
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


def retinanet_cfg() -> CfgNode:
    """Small ResNet-18-FPN with one square anchor of 32 px times the stride's ratio on each level, two classes."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    return cfg


@pytest.fixture
def model() -> RetinaNet:
    return build_model(retinanet_cfg())


def objects(size: tuple[int, int], boxes: list[list[float]], classes: list[int]) -> Instances:
    return Instances(size, gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)), gt_classes=torch.tensor(classes).long())


def test_predictions_are_reordered_location_by_location() -> None:
    # Channel a * 2 + k at row y, column x holds 1000 a + 100 k + 10 y + x.
    a, k, y, x = torch.meshgrid(*(torch.arange(n) for n in (3, 2, 2, 4)), indexing="ij")
    prediction = (1000 * a + 100 * k + 10 * y + x).reshape(1, 6, 2, 4)
    rows = permute_to_N_HWA_K(prediction, 2)[0]
    assert rows.shape == (24, 2)
    assert rows[:4].tolist() == [[0, 100], [1000, 1100], [2000, 2100], [1, 101]]
    assert rows[12].tolist() == [10, 110]


def test_the_normalizer_moves_slowly_and_pixel_statistics_are_not_saved(model: RetinaNet) -> None:
    assert model._ema_update("x", 200, 100) == pytest.approx(110)
    assert model._ema_update("x", 10, 100) == pytest.approx(100)
    assert model.x == pytest.approx(100)
    assert not [k for k in model.state_dict() if "pixel" in k or "anchor" in k]
    assert model.pixel_mean.shape == (3, 1, 1)
    assert model.device == torch.device("cpu")


def test_pictures_are_normalised_before_they_are_padded(model: RetinaNet) -> None:
    images = model.preprocess_image([{"image": torch.full((3, 20, 40), 200, dtype=torch.uint8)}])
    assert images.tensor.shape == (1, 3, 32, 64)
    assert images.tensor[0, 0, 0, 0].item() == pytest.approx(200 - 103.53)
    assert images.tensor[0, :, 25].abs().sum() == 0  # padding is 0, whatever the mean
    assert images.image_sizes == [(20, 40)]


def test_an_untrained_head_gives_the_prior_probability() -> None:
    shape = {"input_shape": [ShapeSpec(channels=4)] * 2, "num_classes": 3, "num_anchors": 2}
    head = RetinaNetHead(**shape, conv_dims=[4, 4])
    logits, deltas = head([torch.randn(1, 4, 2, 3), torch.randn(1, 4, 1, 1)])
    assert [tuple(t.shape) for t in logits + deltas] == [(1, 6, 2, 3), (1, 6, 1, 1), (1, 8, 2, 3), (1, 8, 1, 1)]
    assert logits[0].sigmoid().mean().item() == pytest.approx(0.01, rel=0.05)
    assert head.cls_score.bias[0].item() == pytest.approx(-math.log(99))
    weights = [k for k in head.state_dict() if k.startswith("cls_subnet") and "weight" in k]
    assert weights == ["cls_subnet.0.weight", "cls_subnet.2.weight"]
    head = RetinaNetHead(**shape, conv_dims=[4], norm="BN")
    # batch norms are kept per level
    assert {"cls_subnet.1.weight", "cls_subnet.1.0.running_mean", "cls_subnet.1.1.running_mean"} <= {*head.state_dict()}


def test_anchors_are_labelled_by_their_overlap(model: RetinaNet) -> None:
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])), Boxes(torch.tensor([[90.0, 90, 99, 99]]))]
    # IoU with the object: 1, 0.5 (foreground from 0.5 on), 0.
    labels, boxes = model.label_anchors(anchors, [objects((100, 100), [[0, 0, 10, 10]], [1])])
    assert labels[0].tolist() == [1, 1, 2]
    assert boxes[0][:2].tolist() == [[0, 0, 10, 10]] * 2
    # 0.45 is ignored beside a perfect match.
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5]]))]
    labels, _ = model.label_anchors(anchors, [objects((100, 100), [[0, 0, 10, 10]], [0])])
    assert labels[0].tolist() == [0, -1]


def test_a_bad_best_anchor_is_foreground_and_no_objects_are_background(model: RetinaNet) -> None:
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]))]
    truth = [objects((100, 100), [[0, 0, 10, 1]], [0]), objects((100, 100), [], [])]
    labels, boxes = model.label_anchors(anchors, truth)
    assert [x.tolist() for x in labels] == [[0, 2], [2, 2]]
    assert boxes[1].shape == (2, 4)


def test_losses_by_hand(model: RetinaNet) -> None:
    """Three anchors: foreground of class 1, background, ignored; all logits 0, all deltas 0."""
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 4.5]]))]
    target = torch.tensor([[5.0, 0, 15, 10]])  # dx 0.5
    model.smooth_l1_beta = 0.0
    labels, logits, deltas = torch.tensor([1, 2, -1]), torch.zeros(1, 3, 2), torch.zeros(1, 3, 4)
    with EventStorage() as storage:
        losses = model.losses(anchors, [logits], [labels], [deltas], [target.expand(3, 4)])
    # Focal loss at p = 0.5: 0.5² ln 2 times 0.25 for one target of 1, 0.75 for three targets of 0.
    focal = 0.25 * math.log(2) * (0.25 + 3 * 0.75)
    normalizer = 0.9 * 100 + 0.1 * 1
    assert losses["loss_cls"].item() == pytest.approx(focal / normalizer)
    assert losses["loss_box_reg"].item() == pytest.approx(0.5 / normalizer)
    assert model.loss_normalizer == pytest.approx(normalizer)
    assert storage.latest()["num_pos_anchors"][0] == 1
    assert set(losses) == {"loss_cls", "loss_box_reg"}


def test_training_without_any_object_has_finite_losses_and_gradients(model: RetinaNet) -> None:
    batch = [{"image": torch.rand(3, 40, 50) * 255, "instances": objects((40, 50), [], [])}] * 2
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert losses["loss_box_reg"].item() == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with pytest.raises(AssertionError, match=r"[Ii]nstance"):
        model([{"image": torch.rand(3, 40, 50)}])


def test_each_level_keeps_the_best_pairs_of_anchor_and_class(model: RetinaNet) -> None:
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 4, 4]]))
    scores = torch.tensor([[0.9, 0.3], [0.05, 0.6], [0.04, 0.06]])
    deltas = torch.zeros(3, 4)
    deltas[1, 0] = 0.5
    model.test_topk_candidates, model.test_score_thresh = 3, 0.05
    found = model.inference_single_image([anchors], [scores], [deltas], (50, 60))
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])  # 0.05 itself is out, 0.06 is the fourth
    assert found.pred_classes.tolist() == [0, 1, 1]
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [30, 20, 50, 40], [0, 0, 10, 10]]
    assert found.image_size == (50, 60)
    assert len(model.inference_single_image([anchors], [scores * 0], [deltas], (50, 60))) == 0
    model.test_topk_candidates = 1  # of each level
    coarse = Boxes(torch.tensor([[0.0, 0, 50, 50]])), torch.tensor([[0.2, 0.1]]), torch.zeros(1, 4)
    found = model.inference_single_image(*([x, y] for x, y in zip((anchors, scores, deltas), coarse)), (50, 60))
    assert found.scores.tolist() == pytest.approx([0.9, 0.2])


def test_suppression_is_per_class_and_keeps_the_best(model: RetinaNet) -> None:
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])), Boxes(torch.tensor([[-30.0, 0, 70, 10]]))]
    scores = [torch.tensor([[0.9, 0.2], [0.8, 0.7]]), torch.tensor([[0.6, 0.0]])]
    found = model.inference_single_image(anchors, scores, [torch.zeros(2, 4), torch.zeros(1, 4)], (50, 60))
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.pred_classes.tolist() == [0, 1, 0]
    assert found.pred_boxes.tensor[2].tolist() == [-30, 0, 70, 10]  # clipped only when the picture is scaled
    model.max_detections_per_image = 1
    assert len(model.inference_single_image(anchors, scores, [torch.zeros(2, 4), torch.zeros(1, 4)], (50, 60))) == 1


def test_detections_of_a_batch_are_those_of_its_images_in_the_size_asked_for(model: RetinaNet) -> None:
    model.eval()
    model.test_score_thresh = 0.0
    images = [torch.rand(3, 64, 64) * 255 for _ in range(2)]
    with torch.no_grad():
        both = model([{"image": image} for image in images])
        single = model([{"image": images[1]}])
        result = model([{"image": images[0], "height": 128, "width": 32}])[0]["instances"]
    torch.testing.assert_close(both[1]["instances"].scores, single[0]["instances"].scores)
    assert result.image_size == (128, 32)
    boxes = result.pred_boxes.tensor
    assert boxes[:, 0::2].max() <= 32
    assert boxes[:, 1::2].max() <= 128
    assert boxes.min() >= 0


def test_postprocessing_scales_clips_and_drops_what_is_outside() -> None:
    raw = Instances((10, 20), pred_boxes=Boxes([[0, 0, 30, 5], [21, 0, 25, 5]]), scores=torch.tensor([0.9, 0.8]))
    result = detector_postprocess(raw, 20, 10)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 10]]
    assert result.scores.tolist() == pytest.approx([0.9])
    assert result.image_size == (20, 10)
    with pytest.raises(AssertionError):
        detector_postprocess(Instances((10, 20), scores=torch.zeros(1)), 20, 10)


def test_subclasses_may_replace_any_step() -> None:
    class Constant(RetinaNet):
        def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple:
            labels, boxes = super().label_anchors(anchors, gt_instances)
            return [torch.full_like(x, -1) for x in labels], boxes

    model = Constant(retinanet_cfg()).train()
    with EventStorage():
        losses = model([{"image": torch.rand(3, 40, 50), "instances": objects((40, 50), [[1, 1, 33, 33]], [0])}])
    assert {k: v.item() for k, v in losses.items()} == {"loss_cls": 0, "loss_box_reg": 0}
    assert isinstance(model, DenseDetector)
