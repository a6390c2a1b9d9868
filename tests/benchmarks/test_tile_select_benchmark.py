"""The benchmark of chosen tiles: its images hold what they say, and its shares are counted by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from d2_ext.inference.tiles import make_tiles

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode

from helpers.scripts import load_script

benchmark_script = load_script("benchmarks/tile_select.py")
LEFT, RIGHT = make_tiles(100, 180, 100, 0.2)  # columns 0 to 100, and 80 to 180


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The record of an image of 40 x 30 px with a white object, and sizes of the large images to go with it."""
    for name, value in {"HEIGHT": 30, "WIDTH": 40, "ROWS": 3, "COLUMNS": 4, "SCENE": (120, 240), "PLACE": 30}.items():
        monkeypatch.setattr(benchmark_script, name, value)
    image = np.full((30, 40, 3), 50, np.uint8)
    image[10:20, 12:24] = 255
    cv2.imwrite(str(tmp_path / "0.png"), image)
    box = {"bbox": [12, 10, 12, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    return {"file_name": str(tmp_path / "0.png"), "annotations": [box], "ignore_regions": []}


def test_shares_by_hand() -> None:
    boxes = np.array([[10, 10, 20, 20], [85, 10, 95, 20], [70, 10, 110, 20]])
    assert benchmark_script.inside_a_tile(boxes, [LEFT, RIGHT]).tolist() == [0, 1]
    assert benchmark_script.inside_a_tile(boxes, [RIGHT]).tolist() == [1]
    assert benchmark_script.inside_a_tile(boxes, []).tolist() == []
    assert benchmark_script.share_with_objects(boxes[:1], [LEFT, RIGHT]) == 0.5
    assert benchmark_script.share_with_objects(boxes[2:], [LEFT, RIGHT]) == 1
    assert benchmark_script.share_with_objects(np.zeros((0, 4)), [LEFT, RIGHT]) == 0


def test_a_mosaic_has_ground_where_no_objects_are(small: dict[str, Any]) -> None:
    plain, built = benchmark_script.empty_quarters([{**small, "annotations": []}])
    assert [part.shape for part in plain + built] == [(15, 20, 3)] * 4
    black, tiles = [np.zeros((15, 20, 3), np.uint8)], make_tiles(90, 160, 40, 0.2)
    for share in (0.1, 1.0):
        image, boxes, classes = benchmark_script.mosaic(random.Random(0), [small], black, share, tiles)
        assert image.shape == (90, 160, 3)
        assert set(classes) == {2}
        for x0, y0, x1, y1 in boxes.astype(int):
            assert (image[y0:y1, x0:x1] == 255).all()
            image[y0:y1, x0:x1] = 0
        assert image.max() <= 50
        assert (image == 0).all(axis=2).mean() > 0.7 or share == 1
    assert len(boxes) == 12


def test_objects_of_generated_images_lie_in_their_boxes(small: dict[str, Any]) -> None:
    tiles = make_tiles(120, 240, 60, 0.2)
    image, boxes, classes = benchmark_script.generated(random.Random(3), [small], 1.0, tiles)
    assert image.shape == (120, 240, 3)
    assert len(boxes) == len(classes) > 0
    for x0, y0, x1, y1 in boxes.astype(int):
        assert image[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() > 200
