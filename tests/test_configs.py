"""Every recipe under configs/ builds its model, and one step of training and inference works on small images."""

from __future__ import annotations

from pathlib import Path

from d2_ext.runs.config import load_run_config

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from helpers.quick_weights import quick_weights
from helpers.scripts import ROOT

TWO_STAGE = (
    "faster_rcnn",
    "mask_rcnn",
    "cascade_mask_rcnn",
    "panoptic",
)  # names of recipes that the stand-in has no detectors for
RECIPES = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if "_base_" not in p.parts)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_recipe_names_data_and_trains_and_detects_one_step(path: Path, detectron2_kind: str) -> None:
    if path.name.startswith(TWO_STAGE) and detectron2_kind == "standin":
        pytest.skip("two-stage detectors need an installed Detectron2")
    cfg = load_run_config(path, ["MODEL.DEVICE", "cpu"])
    assert cfg.DATASETS.TRAIN
    assert cfg.DATASETS.TEST
    assert not cfg.MODEL.WEIGHTS or "://" in cfg.MODEL.WEIGHTS, "weights of one machine"
    assert cfg.VERSION == 2
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    if "_giou_" in path.name:  # synchronised norms run on GPUs alone
        cfg.MODEL.ROI_BOX_HEAD.NORM = "BN"
    cfg.freeze()
    with quick_weights():
        model = build_model(cfg)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 40.0, 30.0]])), gt_classes=torch.tensor([0]))
    if cfg.MODEL.MASK_ON:
        truth.gt_masks = PolygonMasks([[[8.0, 8.0, 40.0, 8.0, 40.0, 30.0, 8.0, 30.0]]])
    record = {"image": image, "height": 64, "width": 64, "instances": truth}
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        record["sem_seg"] = torch.randint(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (64, 64))
    with EventStorage():
        losses = model([record])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        found = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert found.image_size == (128, 192)
    assert len(found) <= cfg.TEST.DETECTIONS_PER_IMAGE
