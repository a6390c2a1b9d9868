"""Tiles of large images: they cover everything, and each box is an object somewhere."""

from __future__ import annotations

import itertools
from pathlib import Path

from d2_ext.config import add_d2_ext_config
from d2_ext.data.crops import CropMapper, TileCrop
from d2_ext.data.loader import build_train_loader, build_train_mapper
from d2_ext.data.tiles import cut_record, tile_records, tile_starts, tiles_of
from d2_ext.errors import ConfigError

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from hypothesis import given
from hypothesis import strategies as st

from helpers.own_folders import image


def _box(box: list[float], **more: int) -> dict:
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0, **more}


def _cfg(**tiles: object) -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.INPUT.TILES.ENABLED = True
    for key, value in tiles.items():
        cfg.INPUT.TILES[key] = value
    return cfg


@given(st.integers(1, 5000), st.integers(1, 2000), st.floats(0, 0.95))
def test_tiles_cover_the_side_and_overlap_enough(length: int, tile: int, overlap: float) -> None:
    starts = tile_starts(length, tile, overlap)
    covered = np.zeros(length, bool)
    for start in starts:
        covered[start : start + tile] = True
    assert covered.all()
    assert starts == sorted(set(starts))
    if len(starts) > 1:
        assert starts[-1] + tile == length
        # Rounding to whole px may cost one.
        assert all(b - a <= max(1, tile * (1 - overlap)) + 1 for a, b in itertools.pairwise(starts))


def test_an_image_of_4000_by_3000_gives_the_tiles_one_expects() -> None:
    tiles = tiles_of(4000, 3000, (1024, 1024), 0.2)
    # Steps of at most 819.2 px: 1 + ceil(2976 / 819.2) = 5 across, 1 + ceil(1976 / 819.2) = 4 down.
    assert len(tiles) == 20
    assert tiles[0] == (0, 0, 1024, 1024)
    assert tiles[-1] == (2976, 1976, 1024, 1024)
    assert tiles_of(640, 512, (1024, 1024), 0.2) == [(0, 0, 640, 512)], "small images stay whole"


def test_boxes_are_clipped_and_what_hardly_shows_is_ignored() -> None:
    record = {
        "width": 200,
        "height": 100,
        "annotations": [
            _box([10, 10, 20, 20]),  # inside
            _box([90, 10, 20, 20]),  # half inside
            _box([95, 50, 20, 20]),  # a quarter inside
            _box([150, 10, 20, 20]),  # outside
            _box([98, 0, 50, 50], iscrowd=1),
        ],
        "ignore_regions": [[80, 80, 60, 10], [150, 80, 10, 10]],
        "ignore_categories": [0, 11],
    }
    cut = cut_record(record, (0, 0, 100, 100), min_visible=0.4)
    assert [a["bbox"] for a in cut["annotations"]] == [[10, 10, 20, 20], [90, 10, 10, 20], [98, 0, 2, 50]]
    assert cut["ignore_regions"] == [[80, 80, 20, 10], [95, 50, 5, 20]]
    assert cut["tile"] == [0, 0, 100, 100]
    assert len(record["annotations"]) == 5, "the image's record stays"


def test_empty_tiles_follow_the_rule_for_empty_images() -> None:
    record = {"width": 200, "height": 100, "annotations": [_box([10, 10, 20, 20])]}
    cfg = _cfg(SIZE=[100, 100], OVERLAP=0.0)
    assert len(tile_records(cfg, [record])) == 1
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(tile_records(cfg, [record])) == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SIZE", [1024], "TILES.SIZE is"),
        ("SIZE", [0, 5], "TILES.SIZE is"),
        ("OVERLAP", 1.0, "TILES.OVERLAP is 1.0"),
        ("MIN_VISIBLE", 2.0, "TILES.MIN_VISIBLE is 2.0"),
    ],
)
def test_impossible_tiles_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tile_records(_cfg(**{key: value}), [])


@pytest.fixture
def registered(tmp_path: Path) -> str:
    """An image of 100x80 px with a bright rectangle at x 10..40, y 20..60."""
    record = {"file_name": str(image(tmp_path / "a.png")), "image_id": 1, "width": 100, "height": 80}
    record["annotations"] = [_box([10, 20, 30, 40])]
    name = f"tiles_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [record])
    return name


@pytest.mark.parametrize("ignore", [True, False])
def test_a_tile_shows_its_part_of_the_image_and_the_box_moves_along(registered: str, ignore: bool) -> None:
    cfg = _cfg(SIZE=[40, 50], OVERLAP=0.0)
    cfg.INPUT.IGNORE_REGIONS = ignore
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = build_train_mapper(cfg)
    records = tile_records(cfg, DatasetCatalog.get(registered))
    assert [record["tile"] for record in records] == [[0, 0, 50, 40], [0, 40, 50, 40]]
    upper, lower = (mapper(record) for record in records)
    assert tuple(upper["image"].shape) == (3, 40, 50)
    assert (upper["width"], upper["height"]) == (50, 40)
    assert upper["instances"].gt_boxes.tensor.tolist() == [[10, 20, 40, 40]]
    assert lower["instances"].gt_boxes.tensor.tolist() == [[10, 0, 40, 20]]
    assert (upper["image"][:, 20:40, 10:40] == 220).all()
    assert (upper["image"][:, :20] < 100).all()
    assert (lower["image"][:, :20, 10:40] == 220).all()


def test_the_loader_gives_tiles(registered: str) -> None:
    cfg = _cfg(SIZE=[40, 50], OVERLAP=0.0)
    cfg.DATASETS.TRAIN = (registered,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    batch = next(iter(build_train_loader(cfg)))
    assert {tuple(item["image"].shape) for item in batch} == {(3, 40, 50)}


def test_a_record_without_tile_is_not_cropped() -> None:
    assert TileCrop().get_transform(np.zeros((4, 4, 3))).apply_image(np.ones((4, 4, 3))).shape == (4, 4, 3)
    assert isinstance(build_train_mapper(_cfg()), CropMapper)
