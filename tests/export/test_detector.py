"""The exportable detector beside Detectron2's way of inference, before any format comes in."""

from __future__ import annotations

from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.export import Detections, ExportableDetector, dense_maps, eager_runtime
from d2_ext.export.sparse_towers import gathered_maps
from d2_ext.export.suppression import float32_at_most, suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from helpers.export_models import MODELS, noise, tiny_model

VARIANTS: dict[str, tuple[str, list[Any]]] = {
    **{name: (name, []) for name in MODELS},
    "fcos_by_class": ("fcos", ["MODEL.FCOS.RANKING", "cls", "MODEL.FCOS.TOPK_CANDIDATES_TEST", 60]),
    "fcos_threshold_with_quality": ("fcos", ["MODEL.FCOS.THRESH_WITH_QUALITY", True]),
    "fcos_without_quality": ("fcos", ["MODEL.FCOS.BOX_QUALITY", "none"]),
    "fcos_few": ("fcos", ["MODEL.FCOS.TOPK_CANDIDATES_TEST", 7, "TEST.DETECTIONS_PER_IMAGE", 5]),
    "defcn_anchors": ("defcn", ["MODEL.DEFCN.ASSIGNER", "anchor", "MODEL.DEFCN.ANCHOR_SIZES", [16, 32]]),
    "defcn_few": ("defcn", ["MODEL.DEFCN.TOPK_CANDIDATES_TEST", 9, "TEST.DETECTIONS_PER_IMAGE", 4]),
    "retinanet_few": ("retinanet", ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", 11]),
    "retinanet_high_threshold": ("retinanet", ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.4]),
    "ceasc_pairs": ("retinanet_ceasc", ["MODEL.CEASC.PRE_NMS_UNIT", "pair", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 9]),
    "ceasc_few_anchors": ("retinanet_ceasc", ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", 9]),
}


def exported(model: nn.Module, images: Tensor, **options: Any) -> Detections:
    with torch.no_grad():
        return Detections(*(x.numpy() for x in ExportableDetector(model, **options)(images)))


def assert_same(ours: Detections, expected: Detections) -> None:
    assert ours.image.tolist() == expected.image.tolist()
    assert ours.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(ours.scores, expected.scores, atol=2e-6)
    np.testing.assert_allclose(ours.boxes, expected.boxes, atol=2e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_detects_what_the_model_does(variant: str) -> None:
    name, options = VARIANTS[variant]
    model = tiny_model(name, *options)
    for shape in ((1, 3, 1, 40), (2, 3, 90, 124)):
        images = noise(*shape)
        expected = eager_runtime(model)(images.numpy())
        assert_same(exported(model, images), expected)
    assert np.bincount(expected.image).min() > 0


@pytest.mark.parametrize("name", ["fcos_sparse", "fcos_sparse_ln", "retinanet_ceasc"])
def test_gathered_towers_give_the_definition(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        maps = model.backbone(model.preprocess_image([{"image": x} for x in noise(2, 3, 90, 124)]).tensor)
        features = [maps[key] for key in model.head_in_features]
        masks = model.head.hard_masks(features)
        for branch, tower in (("cls", model.head.cls_tower), ("reg", model.head.reg_tower)):
            shares = [float(mask.float().mean()) for mask in masks[branch]]
            assert 0 < min(shares) < 1, "the case is meant to have active and inactive positions"
            expected = dense_maps(tower, features, masks[branch])
            for key, levels in gathered_maps(tower, features, masks[branch]).items():
                for ours, theirs in zip(levels, expected[key], strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_boxes_that_nobody_looks_at_cost_the_others_nothing() -> None:
    model = tiny_model("fcos_sparse")
    with torch.no_grad():
        maps = model.backbone(model.preprocess_image([{"image": x} for x in noise(2, 3, 90, 124)]).tensor)
        features = [maps[key] for key in model.head_in_features]
        masks = model.head.hard_masks(features)
        all_boxes, needed = (model.head.maps(features, gathered_maps, all_boxes=flag) for flag in (True, False))
    for level, (cls, reg) in enumerate(zip(masks["cls"], masks["reg"])):
        read = (cls & reg).expand_as(all_boxes.boxes[level])
        torch.testing.assert_close(needed.boxes[level][read], all_boxes.boxes[level][read])
        torch.testing.assert_close(needed.logits[level], all_boxes.logits[level])
    left_out = [(a != b).any(1) for a, b in zip(all_boxes.boxes, needed.boxes)]
    assert any(bool(mask.any()) for mask in left_out), "the case is meant to have boxes that are left out"


def test_overlaps_of_exactly_the_threshold_are_judged_as_in_eager_nms() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 32.0, 32.0], [8.0, 0.0, 40.0, 32.0]]])  # IoU 24 / 40 = 0.6
    scores = torch.tensor([[[0.9, 0.8]]])
    eager = len(batched_nms(boxes[0], scores[0, 0], torch.zeros(2, dtype=torch.long), 0.6))
    assert int((suppress(boxes, scores, float32_at_most(0.6), 2) > 0).sum()) == eager == 1
    assert float32_at_most(0.5) == 0.5
    assert float(np.nextafter(np.float32(float32_at_most(0.6)), np.float32(1))) > 0.6 > float32_at_most(0.6)


def test_a_sparse_detector_without_active_positions_detects_nothing() -> None:
    model = tiny_model("fcos_sparse")
    nn.init.constant_(model.head.cls_tower.mask_conv.bias, -1e6)
    found = exported(model, noise(1, 3, 64, 64), tower_pass=gathered_maps)
    assert len(found.scores) == 0


def test_channels_are_swapped_where_image_and_model_differ() -> None:
    model, images = tiny_model("fcos"), noise(1, 3, 64, 96)
    images[:, 0] = images[:, 0] // 2
    expected = eager_runtime(model)(images.flip(1).numpy())
    assert_same(exported(model, images, model_format="RGB", input_format="BGR"), expected)
    assert_same(exported(model, images.flip(1), model_format="RGB", input_format="RGB"), expected)
    swapped = eager_runtime(model, swap_channels=True)(images.numpy())
    assert_same(swapped, expected)


def test_float_images_give_what_uint8_gives() -> None:
    model, images = tiny_model("fcos"), noise(1, 3, 64, 96)
    assert_same(exported(model, images.float()), exported(model, images))


def test_the_model_stays_as_it_is() -> None:
    model = tiny_model("retinanet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ExportableDetector(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_models_and_orders_are_refused_with_what_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"Linear cannot be exported; expected FCOS"):
        ExportableDetector(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="deformable convolutions cannot be exported"):
        ExportableDetector(tiny_model("fcos", "MODEL.FCOS.DEFORM_LAST_CONV", True))
    with pytest.raises(ConfigError, match="expected one of BGR, RGB"):
        ExportableDetector(tiny_model("fcos"), input_format="YUV")
