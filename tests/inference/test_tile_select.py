"""Tiles chosen by a first look at the reduced image: what they find, what they skip, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.engine import Trainer
from d2_ext.errors import ConfigError
from d2_ext.inference import BatchPredictor, TiledDetector

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from helpers.inference_detectors import FURTHER, RECIPES, noise, small_cfg, write_weights


class SpotFinder(nn.Module):
    """Finds bright spots on black ground, best first; the score is the brightest pixel, as a share of white."""

    def __init__(self, score_thresh: float = 0.0, max_detections: int = 100) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.test_score_thresh, self.max_detections_per_image = score_thresh, max_detections
        self.looked_at: list[tuple[int, int]] = []  # sizes of the images

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._find(item["image"][0].numpy())} for item in batch]

    def _find(self, image: np.ndarray) -> Instances:
        self.looked_at.append(image.shape)
        _, labels, stats, _ = cv2.connectedComponentsWithStats((image > 0).astype(np.uint8))
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:]], dtype=torch.float32)
        scores = torch.tensor([image[labels == n].max() / 255 for n in range(1, len(stats))], dtype=torch.float32)
        keep = scores.argsort(descending=True)
        keep = keep[scores[keep] > self.test_score_thresh][: self.max_detections_per_image]
        found = Boxes(boxes.reshape(-1, 4)[keep])
        return Instances(
            image.shape, pred_boxes=found, scores=scores[keep], pred_classes=torch.zeros(len(keep), dtype=torch.long)
        )


def _cfg(*options: Any, recipe: str = "fcos_R18_synthetic") -> CfgNode:
    return small_cfg(recipe, "TEST.TILE.SIZE", 64, "TEST.TILE.SELECT", 4, "TEST.TILE.SELECT_SCORE", 0.2, *options)


def _ground(*spots: tuple[int, int], side: int = 12) -> np.ndarray:
    """Black ground of 4 rows and 7 columns of tiles at every 47 or 48 px, with white spots (x, y, side, side) px."""
    image = np.zeros((207, 350, 3), np.uint8)
    for x, y in spots:
        image[y : y + side, x : x + side] = 255
    return image


def _rows(instances: Instances) -> torch.Tensor:
    columns = instances.pred_boxes.tensor, instances.scores[:, None], instances.pred_classes[:, None]
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize(("recipe", "batch_size"), [*((r, 3) for r in [*RECIPES, *FURTHER]), (RECIPES[0], 1)])
def test_a_detector_that_sees_something_everywhere_gives_what_it_gives_on_all_tiles(
    recipe: str, batch_size: int, tmp_path: Path
) -> None:
    cfg = write_weights(_cfg("TEST.TILE.SELECT", 2, "TEST.TILE.SELECT_SCORE", 0.0, recipe=recipe), tmp_path)
    all_tiles = cfg.clone()
    all_tiles.merge_from_list(["TEST.TILE.SELECT", 0])
    images = [noise(90, 150), noise(64, 120, seed=1)]
    predictor = BatchPredictor(cfg, batch_size=batch_size)
    for found, expected in zip(predictor(images), BatchPredictor(all_tiles, batch_size=batch_size)(images)):
        assert len(expected) > 2
        assert torch.equal(_rows(found), _rows(expected))
    assert (predictor.num_tiles, predictor.num_skipped_tiles) == (2 * 3 + 3, 0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_object_in_a_far_corner_is_found_and_empty_tiles_are_not_computed(batch_size: int) -> None:
    finder = SpotFinder().eval()
    image = _ground((338, 193))
    detector = TiledDetector(finder, _cfg(), batch_size=batch_size)
    # The reduced spot begins at (84, 48) px; 8 px before it are (304, 160) px of the image, where one tile is left.
    assert [tile.box[:2] for tile in detector.select(image)] == [(286, 143)]
    finder.looked_at.clear()
    found = detector.detect(image)
    assert found.pred_boxes.tensor.tolist() == [[338, 193, 350, 205]]
    assert finder.looked_at == [(52, 64), (52, 64), (64, 64)]  # the reduced image of 52 x 88 px, and one tile
    everything = TiledDetector(finder, _cfg("TEST.TILE.SELECT", 0)).detect(image)
    assert torch.equal(_rows(found), _rows(everything))


def test_where_nothing_is_found_no_tile_is_computed() -> None:
    finder = SpotFinder().eval()
    detector = TiledDetector(finder, _cfg("TEST.TILE.WHOLE_IMAGE", True))
    assert detector.select(_ground()) == []
    finder.looked_at.clear()
    found = detector.detect(_ground())
    assert finder.looked_at == [(52, 64), (52, 64)]
    assert (len(found), found.image_size) == (0, (207, 350))
    assert found.pred_boxes.tensor.shape == (0, 4)
    (output,) = detector([{"image": torch.zeros(3, 207, 350, dtype=torch.uint8), "height": 414, "width": 700}])
    assert (len(output["instances"]), output["instances"].image_size) == (0, (414, 700))
    assert output["tiles"] == (0, 4 * 7 + 1)


def test_an_image_of_one_tile_is_computed_without_a_first_look() -> None:
    finder = SpotFinder().eval()
    assert len(TiledDetector(finder, _cfg()).detect(np.zeros((64, 50, 3), np.uint8))) == 0
    assert finder.looked_at == [(64, 50)]


def test_the_first_look_is_not_held_back_by_the_limits_of_the_results() -> None:
    # A spot of 2 px that fills a quarter of a reduced pixel has a score of 0.25; three others are better.
    finder = SpotFinder(score_thresh=0.9, max_detections=1).eval()
    image = _ground((0, 0), (40, 0), (80, 0))
    image[200:202, 340:342] = 255
    detector = TiledDetector(finder, _cfg())
    assert detector.select(image)[-1].box == (286, 143, 350, 207)
    assert [340, 200, 342, 202] in detector.detect(image).pred_boxes.tensor.tolist()
    assert (finder.test_score_thresh, finder.max_detections_per_image) == (0.9, 1)
    missing = TiledDetector(finder, _cfg("TEST.TILE.SELECT_SCORE", 0.3))
    assert [tile.box[:2] for tile in missing.select(image)] == [(0, 0), (48, 0), (95, 0)]


class BrightCells(SpotFinder):
    """Its masks: cells of 8 x 8 px in which there is something."""

    def activation_masks(self, batch: list[dict[str, Any]]) -> list[dict[str, dict[str, torch.Tensor]]]:
        pools = [nn.functional.max_pool2d(item["image"].float(), 8, ceil_mode=True).amax(dim=0) > 0 for item in batch]
        return [{"p3": {"cls": mask, "reg": ~mask}} for mask in pools]


def test_nothing_is_active_in_skipped_tiles() -> None:
    detector = TiledDetector(BrightCells().eval(), _cfg())
    masks = detector.masks_of(_ground((338, 193)))["p3"]
    assert masks["cls"].any()
    assert not masks["reg"][:12].any()
    assert not masks["reg"][:, :30].any()
    masks = detector.masks_of(_ground())["p3"]
    assert not masks["cls"].any()
    assert not masks["reg"].any()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SELECT", 1, "a whole number of at least 2, or 0"),
        ("SELECT_SCORE", 1.5, "from 0 to 1"),
        ("OVERLAP", 1.0, "0.9"),
    ],
)
def test_a_config_made_in_python_is_checked_too(key: str, value: float, expected: str) -> None:
    cfg = _cfg().clone()
    cfg.defrost()
    cfg.TEST.TILE[key] = value
    with pytest.raises(ConfigError, match=rf"TEST.TILE.{key} is {value}; expected .*{expected}"):
        TiledDetector(SpotFinder(), cfg)


def test_choosing_without_tiles_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"TEST.TILE.SELECT is 4 with TEST.TILE.SIZE 0, .* no tiles to choose from"):
        _cfg("TEST.TILE.SIZE", 0)


@pytest.fixture
def far_spot(tmp_path: Path) -> Iterator[str]:
    """A data set of two images, one of them empty."""
    records = []
    for number, spots in enumerate([[(338, 193)], []]):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), _ground(*spots))
        boxes = [
            {"bbox": [*spot, 12, 12], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0} for spot in spots
        ]
        records.append({"file_name": str(path), "image_id": number, "width": 350, "height": 207, "annotations": boxes})
    DatasetCatalog.register("tests_far_spot", lambda: records)
    MetadataCatalog.get("tests_far_spot").set(thing_classes=list("abcd"), evaluator_type="coco")
    yield "tests_far_spot"
    DatasetCatalog.remove("tests_far_spot")
    MetadataCatalog.remove("tests_far_spot")


def test_an_evaluation_says_how_many_tiles_were_skipped(
    far_spot: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("DATASETS.TEST", f"('{far_spot}',)", "OUTPUT_DIR", tmp_path, "DATALOADER.NUM_WORKERS", 0)
    with caplog.at_level(logging.INFO):
        results = Trainer.test(_cfg(*options), SpotFinder())
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["tiles"]["skipped"] == pytest.approx(100 * 55 / 56)
    assert "55 of 56 tiles of tests_far_spot were skipped (98.2 %)" in caplog.text
    assert "tiles" not in Trainer.test(_cfg(*options, "TEST.TILE.SELECT", 0), SpotFinder())
