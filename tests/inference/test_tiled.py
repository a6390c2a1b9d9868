"""The tiled detector: with a detector that makes no mistakes, tiles must give what the whole image gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.engine import Trainer
from d2_ext.inference import BatchPredictor, TiledDetector, without_resizing
from d2_ext.utils.memory import PeakMemory

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from helpers.inference_detectors import noise, small_cfg, write_weights


class ColourFinder(nn.Module):
    """Finds every patch of one colour; its class is the colour's blue value. Each patch has a colour of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        self.batches.append(len(batch))
        return [{"instances": self._find(item["image"])} for item in batch]

    def _find(self, image: torch.Tensor) -> Instances:
        colours = image.flatten(1).t().unique(dim=0)
        colours = colours[colours.sum(dim=1) > 0]
        boxes = []
        for colour in colours:
            rows, columns = (image == colour[:, None, None]).all(dim=0).nonzero().unbind(1)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        scores = 0.5 + colours[:, 1].float() / 512
        found = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        return Instances(tuple(image.shape[1:]), pred_boxes=found, scores=scores, pred_classes=colours[:, 0].long())


def _tiled_cfg(*options: Any, recipe: str = "fcos_R18_synthetic") -> CfgNode:
    return small_cfg(recipe, "TEST.TILE.SIZE", 64, "TEST.TILE.BATCH_SIZE", 3, *options)


def _patches(seed: int, height: int = 150, width: int = 230) -> np.ndarray:
    """Patches of 4 to 120 px in colours of their own that do not touch."""
    generator = np.random.default_rng(seed)
    image, taken = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    for number in range(1, 40):
        h, w = generator.integers(4, 30, 2) * generator.choice([1, 1, 1, 4], 2)
        y, x = generator.integers(0, max(height - h, 1)), generator.integers(0, max(width - w, 1))
        if not taken[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2].any():
            image[y : y + h, x : x + w] = generator.integers(0, 3), generator.integers(0, 256), number
            taken[y : y + h, x : x + w] = True
    return image


@pytest.mark.parametrize("seed", range(8))
def test_a_perfect_detector_finds_on_tiles_what_it_finds_on_the_whole_image(seed: int) -> None:
    image = _patches(seed)
    finder = ColourFinder().eval()
    expected = finder([{"image": torch.from_numpy(image).permute(2, 0, 1)}])[0]["instances"]
    finder.batches.clear()
    found = TiledDetector(finder, _tiled_cfg()).detect(image)
    rows = [torch.cat([x.pred_boxes.tensor, x.pred_classes[:, None]], dim=1).tolist() for x in (found, expected)]
    assert sorted(rows[0]) == sorted(rows[1])
    assert finder.batches == [3, 3, 3, 3, 3]  # 3 rows of 5 tiles


def test_small_images_are_left_whole(tmp_path: Path) -> None:
    cfg = write_weights(_tiled_cfg(), tmp_path)
    image = noise(64, 50)
    (tiled,) = BatchPredictor(cfg)([image])
    (whole,) = BatchPredictor(small_cfg("fcos_R18_synthetic", "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS))([image])
    assert torch.equal(tiled.pred_boxes.tensor, whole.pred_boxes.tensor)
    assert torch.equal(tiled.scores, whole.scores)


def test_the_whole_image_can_be_looked_at_too() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[10:90, 10:190] = (1, 200, 5)
    detector = TiledDetector(ColourFinder().eval(), _tiled_cfg("TEST.TILE.WHOLE_IMAGE", True))
    assert detector.tiles(100, 200)[-1].box == (0, 0, 200, 100)
    assert detector.detect(image).pred_boxes.tensor.tolist() == [[10, 10, 190, 90]]


def test_results_come_in_the_wanted_frame() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[10:20, 10:30] = (1, 200, 5)
    inputs = {"image": torch.from_numpy(image).permute(2, 0, 1), "height": 50, "width": 400}
    (output,) = TiledDetector(ColourFinder().eval(), _tiled_cfg())([inputs])
    assert output["instances"].image_size == (50, 400)
    assert output["instances"].pred_boxes.tensor.tolist() == [[20, 5, 60, 10]]


def test_memory_does_not_grow_with_the_number_of_tiles(tmp_path: Path) -> None:
    predictor = BatchPredictor(write_weights(_tiled_cfg("TEST.DETECTIONS_PER_IMAGE", 5), tmp_path), batch_size=3)
    peaks = []
    for width in (200, 600):
        image = noise(100, width)
        with PeakMemory() as memory:
            predictor([image])
        peaks.append(memory.peak)
    assert peaks[1] < 1.1 * peaks[0]


def test_the_trainer_evaluates_and_draws_on_tiles(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), _patches(0, 96, 160)[:, :, ::-1])  # the config is RGB
    annotation = {"bbox": [8, 8, 30, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    record = {"file_name": str(tmp_path / "0.png"), "image_id": 1, "width": 160, "height": 96}
    DatasetCatalog.register("tests_tiled", lambda: [{**record, "annotations": [annotation]}])
    MetadataCatalog.get("tests_tiled").set(thing_classes=list("abcd"), evaluator_type="coco")
    options = ("DATASETS.TEST", "('tests_tiled',)", "INPUT.MIN_SIZE_TEST", 48, "OUTPUT_DIR", tmp_path)
    options += ("DATALOADER.NUM_WORKERS", 0, "TEST.NUM_PICTURES", 1, "TEST.PICTURE_SCORE_THRESH", 0.0)
    try:
        cfg = _tiled_cfg(*options)
        (batch,) = Trainer.build_test_loader(cfg, "tests_tiled")
        assert batch[0]["image"].shape == (3, 96, 160)  # in its own size, though MIN_SIZE_TEST is 48
        model = ColourFinder()
        Trainer.test(cfg, model)
        assert model.training
        assert model.batches == [3, 3]  # 2 rows of 3 tiles
        assert len(Trainer.write_images(cfg, model)) == 1
        assert without_resizing(small_cfg()).INPUT.MIN_SIZE_TEST == small_cfg().INPUT.MIN_SIZE_TEST
    finally:
        DatasetCatalog.remove("tests_tiled")
        MetadataCatalog.remove("tests_tiled")


class BrightCells(nn.Module):
    """Its masks: cells of 8 x 8 px in which there is something."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def activation_masks(self, batch: list[dict[str, Any]]) -> list[dict[str, dict[str, torch.Tensor]]]:
        pools = [nn.functional.max_pool2d(item["image"].float(), 8, ceil_mode=True).amax(dim=0) > 0 for item in batch]
        return [{"p3": {"cls": mask, "reg": ~mask}} for mask in pools]


def test_masks_of_tiles_are_joined_to_those_of_the_whole_image() -> None:
    image = np.zeros((64, 160, 3), np.uint8)  # tiles at 0, 48 and 96 px, whole cells
    for y, x in ((0, 0), (30, 61), (63, 159), (20, 100)):
        image[y, x] = 9
    model = BrightCells().eval()
    (expected,) = model.activation_masks([{"image": torch.from_numpy(image).permute(2, 0, 1)}])
    joined = TiledDetector(model, _tiled_cfg()).masks_of(image)
    assert torch.equal(joined["p3"]["cls"], expected["p3"]["cls"])
    assert joined["p3"]["cls"].sum() == 4
    assert torch.equal(joined["p3"]["reg"], expected["p3"]["reg"])


@pytest.mark.parametrize("size", [(64, 64), (150, 230), (65, 101), (30, 199)])
def test_joined_masks_have_no_gaps_where_tiles_do_not_meet_in_whole_cells(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 9, np.uint8)
    joined = TiledDetector(BrightCells().eval(), _tiled_cfg()).masks_of(image)
    assert joined["p3"]["cls"].all()
    assert not joined["p3"]["reg"].any()
