"""GFL and GFL-CEASC from their config: batches, ignore regions, edges, options."""

from __future__ import annotations

import math
from typing import Any

import d2_ext
from d2_ext.errors import ConfigError
from d2_ext.modeling.ignore import IGNORED
from d2_ext.modeling.meta_arch import gfl
from d2_ext.modeling.meta_arch.gfl import GFL, GFLCEASC

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

SIZES = [(70, 90), (64, 64), (96, 96), (70, 90)]
MODELS = ("GFL", "GFLCEASC")


def config(name: str, *options: object) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p6p7_backbone"
    cfg.MODEL.PIXEL_STD = [58.0, 57.0, 57.0]
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "FrozenStatsBN"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.P6_IN_FEATURE = "p5"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8.0 * s] for s in (8, 16, 32, 64, 128)]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.CEASC.NORM_GROUPS = 8
    cfg.MODEL.CEASC.CLS_BASE = -5.0
    cfg.MODEL.GFL.NUM_CLASSES = 3
    cfg.merge_from_list(list(options))
    return cfg


def build(name: str, *options: object) -> GFL:
    torch.manual_seed(0)
    model = build_model(config(name, *options))
    for key, parameter in model.head.named_parameters():  # random, but strong enough to give detections
        if "norm" not in key and "scale" not in key:
            torch.nn.init.normal_(parameter, std=0.1)
    if name == "GFLCEASC":
        for tower in model.head.towers().values():
            torch.nn.init.normal_(tower.mask_conv.weight, std=0.01)
    return model.eval()


def images(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [{"image": torch.randint(0, 256, (3, *s), generator=generator, dtype=torch.uint8)} for s in sizes]


def truth(size: tuple[int, int], boxes: list[list[float]], classes: list[int]) -> Instances:
    return Instances(
        size, gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)), gt_classes=torch.tensor(classes, dtype=torch.int64)
    )


def detect(model: GFL, inputs: list[dict[str, Any]]) -> list[Instances]:
    with torch.no_grad():
        return [x["instances"] for x in model(inputs)]


def train(model: GFL, inputs: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    with EventStorage() as storage:
        losses = model.train()(inputs)
    return losses, {k: v[0] for k, v in storage.latest().items()}


def assert_same_detections(a: Instances, b: Instances) -> None:
    assert len(a) == len(b) > 0
    assert torch.equal(a.pred_classes, b.pred_classes)
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_detections_do_not_depend_on_the_batch(name: str) -> None:
    model, inputs = build(name), images(SIZES)
    for together, single in zip(detect(model, inputs), [detect(model, [x])[0] for x in inputs]):
        assert_same_detections(together, single)


def test_detections_equal_those_of_the_dense_definition() -> None:
    model, inputs = build("GFLCEASC"), images(SIZES[:2])
    sparse = detect(model, inputs)
    for tower in model.head.towers().values():
        tower.forward_sparse = lambda maps, masks, needed, moments, tower=tower: tower.forward_dense(maps, masks)
    for a, b in zip(sparse, detect(model, inputs)):
        assert_same_detections(a, b)


def test_inactive_positions_hold_boxes_of_eight_strides_to_each_side() -> None:
    model = build("GFLCEASC", "MODEL.GFL.SCORE_THRESH_TEST", 1e-3, "MODEL.GFL.TOPK_CANDIDATES_TEST", 100_000)
    model.test_nms_thresh, model.max_detections_per_image = 1.0, 1_000_000
    for tower in model.head.towers().values():
        torch.nn.init.constant_(tower.mask_conv.bias, -1e6)
    found = detect(model, images([(512, 512)]))[0]
    assert torch.allclose(found.scores, torch.tensor(-5.0).sigmoid())
    assert len(found) == 3 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2)
    boxes = found.pred_boxes.tensor
    whole = boxes[(boxes[:, :2] > 0).all(dim=1) & (boxes[:, 2:] < 512).all(dim=1)]  # not clipped
    sides = (whole[:, 2:] - whole[:, :2]).unique().tolist()
    assert sides == pytest.approx([16 * 8, 16 * 16], abs=1e-2)


def test_distributions_at_the_targets_decode_to_the_objects() -> None:
    model = build("GFL")
    anchors = model.anchor_generator([torch.zeros(1, 32, 32 >> i, 32 >> i) for i in range(5)])
    box = torch.tensor([[13.0, 22, 75, 81]])
    for level, stride in enumerate((8, 16)):
        center = torch.tensor([[48.0, 48.0]])
        position = int(48 / stride) * (32 >> level) + int(48 / stride)
        anchor = anchors[level].tensor[position : position + 1]
        assert torch.equal((anchor[:, :2] + anchor[:, 2:]) / 2, center)
        distances = torch.cat([center - box[:, :2], box[:, 2:] - center], dim=1)[0] / stride
        logits = torch.full((4, 17), -1e4)  # the two bins beside the distance, weighted by nearness
        for side, distance in enumerate(distances.tolist()):
            low = int(distance)
            logits[side, low], logits[side, low + 1] = math.log(low + 1 - distance), math.log(distance - low)
        found = model.decode_boxes(level, anchor, logits.view(1, -1))
        torch.testing.assert_close(found, box, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("bias", "active"), [(-1e6, 0.0), (1e6, 1.0)])
def test_empty_and_full_masks_work(bias: float, active: float) -> None:
    model = build("GFLCEASC")
    for tower in model.head.towers().values():
        torch.nn.init.constant_(tower.mask_conv.bias, bias)
    inputs = images(SIZES[:2])
    assert all((len(x) > 0) == bool(active) for x in detect(model, inputs))
    masks = model.activation_masks(inputs)[0]
    assert masks["p3"]["cls"].shape == (9, 12)
    assert all(m.float().mean() == active for level in masks.values() for m in level.values())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns_with_and_without_objects(name: str) -> None:
    for boxes, classes in (([[8.0, 8, 50, 40]], [1]), ([], [])):
        model, inputs = build(name), images([(70, 90)])
        inputs[0]["instances"] = truth((70, 90), boxes, classes)
        losses, scalars = train(model, inputs)
        total = sum(losses.values())
        total.backward()
        assert torch.isfinite(total)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
        assert (losses["loss_box_reg"] > 0) == bool(boxes)
        assert ("mask_ratio/p3_cls" in scalars) == (name == "GFLCEASC")


def labels_of(
    model: GFL, size: tuple[int, int], boxes: list[list[float]], classes: list[int], grid: int
) -> torch.Tensor:
    """Labels of the finest level for one image in a batch of ``grid`` times ``grid`` cells."""
    features = [torch.zeros(1, 32, grid >> i, grid >> i) for i in range(5)]
    anchors = model.anchor_generator(features)
    targets = model.assign(anchors, [truth(size, boxes, classes)])
    assert (targets.boxes[targets.labels == model.num_classes] == 0).all()
    return targets.labels[0, : grid * grid].view(grid, grid)


def test_background_in_ignore_regions_and_beyond_the_image_is_ignored() -> None:
    model = build("GFL")
    region = [64.0, 0.0, 96.0, 32.0]
    labels = labels_of(model, (128, 128), [[4.0, 4, 60, 60], region], [2, IGNORED], 32)
    assert (labels == 2).any()
    # A position's cell reaches half a stride to each side: on the border it lies half inside, at a corner a quarter.
    expected = torch.ones(32, 32, dtype=torch.bool)
    expected[:16, :16] = False
    expected[0:5, 8:13] = True
    expected[0, 8] = expected[0, 12] = expected[4, 8] = expected[4, 12] = False
    assert torch.equal(labels == IGNORED, expected)


def test_objects_inside_a_region_stay_objects() -> None:
    model = build("GFL")
    alone = labels_of(model, (128, 128), [[4.0, 4, 60, 60]], [2], 16)
    covered = labels_of(model, (128, 128), [[4.0, 4, 60, 60], [0.0, 0, 128, 128]], [2, IGNORED], 16)
    assert torch.equal(alone == 2, covered == 2)
    assert (covered[alone == 3] == IGNORED).float().mean() > 0.8


def test_divisors_are_averaged_over_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = images([(70, 90)])
    inputs[0]["instances"] = truth((70, 90), [[8.0, 8, 50, 40]], [1])
    alone, _ = train(build("GFL"), inputs)
    monkeypatch.setattr(gfl, "average_over_workers", lambda *x: [torch.as_tensor(v).float() * 10 for v in x])
    averaged, _ = train(build("GFL"), inputs)
    assert averaged["loss_cls"].item() == pytest.approx(alone["loss_cls"].item() / 10, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.GFL.PRE_NMS_UNIT", "anchors"), "Did you mean 'anchor'"),
        (("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0]]), "GFL has one"),
        (("MODEL.GFL.IN_FEATURES", ["p3", "p8"]), "has no output 'p8'"),
        (("MODEL.CEASC.RATIO_TARGET", "anchor"), "Did you mean 'anchors'"),
        (("MODEL.CEASC.PRE_NMS_UNIT", "pair"), "GFLCEASC does not"),
        (("MODEL.CEASC.REG_BASE", 0.1), "only RetinaNetCEASC reads it"),
    ],
)
def test_values_that_cannot_work_are_refused(options: tuple[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config("GFLCEASC", *options))


def test_the_two_towers_are_registered_with_their_own_heads() -> None:
    assert type(build("GFL")) is GFL
    model = build("GFLCEASC", "MODEL.CEASC.NORM_LOSS_WEIGHT", 3.0, "MODEL.CEASC.RATIO_LOSS_WEIGHT", 2.0)
    assert isinstance(model, GFLCEASC)
    assert (model.sparsity.norm_weight, model.sparsity.ratio_weight) == (3.0, 2.0)
    assert model.head.cls_tower.bases == {"logits": -5.0}
