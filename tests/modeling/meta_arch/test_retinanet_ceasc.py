"""RetinaNet-CEASC from its config: batches, edges, options."""

from __future__ import annotations

from typing import Any

import d2_ext
from d2_ext.errors import ConfigError
from d2_ext.modeling.meta_arch.retinanet_ceasc import RetinaNetCEASC

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

SIZES = [(70, 90), (64, 64), (96, 96), (70, 90), (33, 150)]


def config(*options: object) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.META_ARCHITECTURE = "RetinaNetCEASC"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p6p7_backbone"
    cfg.MODEL.PIXEL_STD = [58.0, 57.0, 57.0]
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "FrozenStatsBN"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.P7_RELU = False
    cfg.MODEL.CEASC.NORM_GROUPS = 8
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.26, x * 1.587] for x in (32.0, 64.0, 128.0, 256.0, 512.0)]
    cfg.merge_from_list(list(options))
    return cfg


def build(*options: object) -> RetinaNetCEASC:
    torch.manual_seed(0)
    model = build_model(config(*options))
    for tower in model.head.towers().values():  # random, but strong enough to give detections and mixed masks
        for name, parameter in tower.named_parameters():
            if "norm" not in name:
                parameter.data.copy_(torch.randn(parameter.shape) * 0.1)  # the same in any order of memory
        tower.mask_conv.weight.data.copy_(torch.randn(tower.mask_conv.weight.shape) * 0.01)
    return model.eval()


def images(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [{"image": torch.randint(0, 256, (3, *s), generator=generator, dtype=torch.uint8)} for s in sizes]


def truth(size: tuple[int, int], boxes: list[list[float]], classes: list[int]) -> Instances:
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def detect(model: RetinaNetCEASC, inputs: list[dict[str, Any]]) -> list[Instances]:
    with torch.no_grad():
        return [x["instances"] for x in model(inputs)]


def train(model: RetinaNetCEASC, inputs: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    with EventStorage() as storage:
        losses = model.train()(inputs)
    return losses, {k: v[0] for k, v in storage.latest().items()}


def assert_same_detections(a: Instances, b: Instances) -> None:
    assert len(a) == len(b) > 0
    assert torch.equal(a.pred_classes, b.pred_classes)
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("number", [2, 5])
def test_detections_do_not_depend_on_the_batch(number: int) -> None:
    model, inputs = build(), images(SIZES[:number])
    for together, single in zip(detect(model, inputs), [detect(model, [x])[0] for x in inputs]):
        assert_same_detections(together, single)


def test_detections_equal_those_of_the_dense_definition() -> None:
    model, inputs = build(), images(SIZES[:2])
    sparse = detect(model, inputs)
    for tower in model.head.towers().values():
        tower.forward_sparse = lambda maps, masks, needed, moments, tower=tower: tower.forward_dense(maps, masks)
    for a, b in zip(sparse, detect(model, inputs)):
        assert_same_detections(a, b)


def test_a_threshold_below_the_base_score_lets_inactive_positions_through() -> None:
    model = build("MODEL.RETINANET.SCORE_THRESH_TEST", 1e-5, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 100_000)
    model.test_nms_thresh, model.max_detections_per_image = 1.0, 1_000_000
    for tower in model.head.towers().values():
        torch.nn.init.constant_(tower.mask_conv.bias, -1e6)  # nothing is active: boxes are anchors
    found = detect(model, images([(32, 64)]))[0]
    assert torch.allclose(found.scores, torch.tensor(-8.0).sigmoid())
    # every anchor with all three classes: 32 + 8 + 2 + 1 + 1 positions of 9 anchors
    assert len(found) == 3 * 9 * (32 + 8 + 2 + 1 + 1)


def test_a_threshold_below_the_base_score_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    model = build("MODEL.RETINANET.SCORE_THRESH_TEST", 3e-5)
    for _ in range(2):
        detect(model, images([(32, 64)]))
    (message,) = [r.message for r in caplog.records if "score threshold 3e-05" in r.message]
    assert "below the score of inactive positions, 0.00034 (class logit -8)" in message
    caplog.clear()
    model.test_score_thresh = 0.05
    detect(model, images([(32, 64)]))
    assert not [r for r in caplog.records if "score threshold" in r.message]


@pytest.mark.parametrize(("bias", "active"), [(-1e6, 0.0), (1e6, 1.0)])
def test_empty_and_full_masks_work(bias: float, active: float) -> None:
    model = build()
    for tower in model.head.towers().values():
        torch.nn.init.constant_(tower.mask_conv.bias, bias)
    inputs = images(SIZES[:2])
    assert all((len(x) > 0) == bool(active) for x in detect(model, inputs))
    masks = model.activation_masks(inputs)[0]
    assert all(m.float().mean() == active for level in masks.values() for m in level.values())


def test_an_image_of_one_pixel_is_detected_and_trained_on() -> None:
    model, inputs = build(), images([(1, 1)])
    assert detect(model, inputs)[0].image_size == (1, 1)
    inputs[0]["instances"] = truth((1, 1), [[0.0, 0.0, 1.0, 1.0]], [2])
    losses, _ = train(model, inputs)
    assert torch.isfinite(sum(losses.values()))


def test_no_images_give_no_detections() -> None:
    assert detect(build(), []) == []


def test_images_without_boxes_train() -> None:
    model, inputs = build(), images(SIZES[:2])
    for item in inputs:
        item["instances"] = truth(tuple(item["image"].shape[1:]), [], [])
    losses, scalars = train(model, inputs)
    assert losses["loss_box_reg"].item() == 0
    assert scalars["num_pos_anchors"] == 0
    assert scalars["mask_ratio/target"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_mixed_precision_trains_and_detects() -> None:
    model, inputs = build(), images(SIZES[:3])
    plain = detect(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(len(x) > 0.5 * len(y) for x, y in zip(detect(model, inputs), plain))
    for item, size in zip(inputs, SIZES):
        item["instances"] = truth(size, [[4.0, 6.0, 40.0, 50.0]], [1])
    with torch.autocast("cpu", torch.bfloat16):  # anew: PyTorch 2.6 keeps the weights that were cast without gradient
        losses, _ = train(model, inputs)
    assert all(x.dtype == torch.float32 and torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_shares_are_logged_by_level_and_branch() -> None:
    inputs = images([(64, 64)])
    inputs[0]["instances"] = truth((64, 64), [[8.0, 8.0, 40.0, 40.0]], [0])
    losses, scalars = train(build(), inputs)
    names = {"cls", "reg", "target", *(f"p{i}_{b}" for i in range(3, 8) for b in ("cls", "reg", "target"))}
    assert {k.removeprefix("mask_ratio/") for k in scalars if "mask_ratio" in k} == names
    squares = [(scalars[f"mask_ratio/p{i}_{b}"] - scalars[f"mask_ratio/p{i}_target"]) ** 2
               for i in range(3, 8) for b in ("cls", "reg")]  # fmt: skip
    assert losses["loss_ratio"].item() == pytest.approx(sum(squares) / 10, rel=1e-5)
    positions = [64, 16, 4, 1, 1]
    mean = sum(n * scalars[f"mask_ratio/p{i}_cls"] for n, i in zip(positions, range(3, 8))) / 86
    assert scalars["mask_ratio/cls"] == pytest.approx(mean, rel=1e-5)


def test_cells_beyond_an_images_own_padding_are_ignored() -> None:
    model = build()
    anchors = model.anchor_generator([torch.zeros(1, 1, s, s) for s in (12, 6, 3, 2, 1)])  # a batch of 96 x 96
    labels = model.assign(anchors, [truth((33, 64), [], [])]).labels  # alone: 64 x 64
    per_level = labels[0].split([len(a) for a in anchors])
    p3 = per_level[0].view(12, 12, 9)
    assert (p3[:8, :8] == 3).all()
    assert (p3[8:] == -1).all()
    assert (p3[:, 8:] == -1).all()
    assert [int((x == 3).sum()) // 9 for x in per_level] == [64, 16, 4, 1, 1]


def test_background_inside_an_ignore_region_is_ignored_but_objects_there_count() -> None:
    model = build()
    anchors = model.anchor_generator([torch.zeros(1, 1, s, s) for s in (12, 6, 3, 2, 1)])
    objects = truth((96, 96), [[20.0, 20, 52, 52]], [1])
    both = truth((96, 96), [[20.0, 20, 52, 52], [0, 0, 60, 60]], [1, -1])
    targets, labels = model.assign(anchors, [objects]), model.assign(anchors, [both]).labels
    plain, boxes = targets.labels, targets.boxes
    positive = plain[0] == 1
    assert positive.any()
    assert torch.equal(positive, labels[0] == 1)
    assert torch.equal(boxes[0][positive], torch.tensor([[20.0, 20, 52, 52]]).expand(int(positive.sum()), -1))
    changed = plain[0] != labels[0]
    assert changed.any()
    assert (labels[0][changed] == -1).all()
    centers = Boxes.cat(anchors).get_centers()[changed]
    assert (centers < 60).all()


def test_the_dense_baseline_ignores_the_same_regions_and_is_stock_without_them() -> None:
    dense = build_model(config("MODEL.META_ARCHITECTURE", "IgnoreAwareRetinaNet"))
    stock = build_model(config("MODEL.META_ARCHITECTURE", "RetinaNet"))
    assert dense.state_dict().keys() == stock.state_dict().keys()
    anchors = dense.anchor_generator([torch.zeros(1, 1, s, s) for s in (12, 6, 3, 2, 1)])
    objects = truth((96, 96), [[20.0, 20, 52, 52]], [1])
    plain = stock.label_anchors(anchors, [objects])[0][0]
    assert torch.equal(dense.label_anchors(anchors, [objects])[0][0], plain)
    both = truth((96, 96), [[20.0, 20, 52, 52], [60, 60, 96, 96]], [1, -1])
    labels = dense.label_anchors(anchors, [both])[0][0]
    changed = labels != plain
    assert changed.any()
    assert (labels[changed] == -1).all()
    assert (plain[changed] == 3).all()


def test_activation_masks_are_cropped_to_the_image() -> None:
    model = build().train()  # in training, too, they are those of inference
    inputs = images([(70, 90), (33, 20)])
    masks = model.activation_masks(inputs)
    assert tuple(masks[0]["p3"]["cls"].shape) == (9, 12)  # ceil(70 / 8), ceil(90 / 8)
    assert tuple(masks[1]["p4"]["reg"].shape) == (3, 2)
    assert masks[1]["p7"]["cls"].dtype == torch.bool
    again = model.activation_masks(inputs[:1])[0]
    assert all(torch.equal(again[k][b], masks[0][k][b]) for k in again for b in ("cls", "reg"))


def test_top_anchors_keep_all_their_classes_and_top_pairs_do_not() -> None:
    model, inputs = build("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 1), images([(64, 64)])
    model.test_nms_thresh, model.test_score_thresh = 1.0, 0.0005
    assert len(detect(model, inputs)[0]) > 5  # up to 5 levels x 3 classes
    model.pre_nms_unit = "pair"
    assert len(detect(model, inputs)[0]) <= 5


def test_normalizer_is_local_and_counts_an_empty_image_as_one() -> None:
    model = build()
    positive = torch.zeros(3, 10, dtype=torch.bool)
    positive[0, :4] = True
    with EventStorage():
        assert model._normalizer(positive) == 4 + 1 + 1
        model.loss_normalizer_kind = "moving_average"
        assert model._normalizer(positive) == pytest.approx(0.9 * 100 + 0.1 * 4)


def test_tiny_sizes_are_clamped_like_huge_ones() -> None:
    model = build()
    boxes = model.decode_boxes(0, torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([[0.0, 0, -50, 50]]))
    width, height = (boxes[0, 2:] - boxes[0, :2]).tolist()
    assert width == pytest.approx(100 * 16 / 1000, rel=1e-3)
    assert height == pytest.approx(100 * 1000 / 16, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.CEASC.NORM_GROUPS", 5), "32 channels cannot be split into 5 groups"),
        (("MODEL.CEASC.NORM", "BN"), "Known: CE-GN, LN"),
        (
            ("MODEL.CEASC.OPEN_IN_TRAINING", True, "MODEL.CEASC.MASK_LOSS_WEIGHT", 0.0),
            "MASK_LOSS_WEIGHT above 0, not 0",
        ),
        (("MODEL.CEASC.RATIO_TARGET", "anchor"), "Did you mean 'anchors'"),
        (("MODEL.CEASC.LOSS_NORMALIZER", "global"), "MODEL.CEASC.LOSS_NORMALIZER"),
        (("MODEL.CEASC.PRE_NMS_UNIT", "box"), "MODEL.CEASC.PRE_NMS_UNIT"),
        (("MODEL.CEASC.NORM_LOSS_TARGET", "gn"), "Known: conv, group_norm"),
        (("MODEL.CEASC.LOW_QUALITY_MATCHES", "no"), "MODEL.CEASC.LOW_QUALITY_MATCHES"),
        (("MODEL.RETINANET.NORM", "GN"), "the norm that MODEL.CEASC.NORM names"),
        (("MODEL.RETINANET.IN_FEATURES", ["p3", "q4"]), "no output 'q4'"),
        (("MODEL.RETINANET.IOU_THRESHOLDS", [0.5], "MODEL.RETINANET.IOU_LABELS", [0, 1]), "needs two thresholds"),
        (("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "iou"), "MODEL.RETINANET.BBOX_REG_LOSS_TYPE"),
    ],
)
def test_values_that_cannot_work_stop_the_build(options: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config(*options))


def test_options_change_what_they_say() -> None:
    inputs = images([(64, 64)])
    inputs[0]["instances"] = truth((64, 64), [[8.0, 8.0, 40.0, 40.0]], [0])

    def losses(*options: object) -> dict[str, float]:
        model = build(*options)
        torch.manual_seed(1)
        return {k: v.item() for k, v in train(model, inputs)[0].items()}

    plain = losses()
    assert plain.keys() - losses("MODEL.CEASC.NORM", "LN", "MODEL.CEASC.NORM_GROUPS", 32).keys() == {"loss_norm"}
    for options, changed in [
        (("MODEL.CEASC.NORM_LOSS_WEIGHT", 5.0), {"loss_norm"}),
        (("MODEL.CEASC.RATIO_LOSS_WEIGHT", 2.0), {"loss_ratio"}),
        (("MODEL.CEASC.RATIO_TARGET", "positions"), {"loss_ratio"}),
        (("MODEL.CEASC.MASK_LOSS_WEIGHT", 3.0), {"loss_mask"}),
        (("MODEL.CEASC.MASK_POSITIVE_WEIGHT", 5.0), {"loss_mask"}),
        (("MODEL.CEASC.NORM_LOSS_TARGET", "conv"), {"loss_norm"}),
        (("MODEL.CEASC.CLS_BASE", -5.0), {"loss_cls"}),
        (("MODEL.CEASC.REG_BASE", 0.5), {"loss_box_reg"}),
        (("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"), {"loss_box_reg"}),
        (("MODEL.CEASC.UNBIASED_VARIANCE", False), {"loss_cls", "loss_box_reg", "loss_norm"}),
        (("MODEL.CEASC.OPEN_IN_TRAINING", True), {"loss_cls", "loss_box_reg", "loss_norm"}),
    ]:
        now = losses(*options)
        assert {k for k in plain if now[k] != pytest.approx(plain[k], rel=1e-7)} == changed, options
