"""Files of results: what is in them, and that they are whole or not there."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from pathlib import Path

from d2_ext.errors import DatasetError
from d2_ext.files import replacing
from d2_ext.inference.sources import Frame
from d2_ext.inference.writers import WRITTEN, CocoWriter, CsvWriter, DrawingWriter, image_name
from d2_ext.visualization import draw_boxes

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from helpers.failing_calls import small_files

GREY = np.full((48, 64, 3), 90, np.uint8)
METADATA = Metadata().set(thing_classes=["car", "van"], thing_colors=[(255, 0, 0), (0, 0, 255)])


def _found(count: int = 2) -> Instances:
    boxes = torch.tensor([[10.0, 20, 30, 40], [40, 20, 60, 40]])[:count]
    scores, classes = torch.tensor([0.75, 0.5])[:count], torch.tensor([0, 1])[:count]
    return Instances((48, 64), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def _frame(name: str, number: int | None = None) -> Frame:
    return Frame(name, name, number, GREY)


def _files(folder: Path) -> list[str]:
    """All but the list of what was written."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file())


def test_boxes_are_drawn_in_the_colours_of_their_classes_at_the_images_size() -> None:
    drawn = draw_boxes(GREY, _found(), METADATA)
    assert drawn.shape == GREY.shape
    assert (GREY == 90).all()
    assert drawn[40, 20].tolist() == [0, 0, 255]  # the lower border of the first box: red, in BGR
    assert drawn[40, 50].tolist() == [255, 0, 0]
    assert drawn[30, 20].tolist() == [90, 90, 90]
    np.testing.assert_array_equal(draw_boxes(GREY, _found(0), METADATA), GREY)
    assert (draw_boxes(GREY, _found(), Metadata()) != GREY).any()


def test_lines_and_labels_do_not_grow_without_end_and_can_be_left_out() -> None:
    large = np.full((3000, 4000, 3), 90, np.uint8)
    one = _found(1)
    one.pred_boxes = Boxes(torch.tensor([[1000.0, 1000, 2000, 2000]]))
    changed = (draw_boxes(large, one, METADATA) != 90).any(axis=2)
    assert changed[1500, 900:1100].sum() <= 5  # px of the left line
    assert changed[900:990].any(axis=1).sum() <= 40  # px of the label, above the line
    without = (draw_boxes(large, one, METADATA, labels=False) != 90).any(axis=2)
    assert not without[:990].any()
    assert without[1000].any()


def test_images_keep_name_and_format_and_frames_become_one_video_each(tmp_path: Path) -> None:
    with DrawingWriter(tmp_path, METADATA, {"v.avi": 5.0}) as writer:
        writer.write(_frame("sub/a.png"), _found())
        writer.write(_frame("b.gif"), _found())
        for number in range(3):
            writer.write(_frame("v.avi", number), _found())
        writer.write(_frame("w.mp4", 0), _found())
    assert _files(tmp_path) == ["b.jpg", "sub/a.png", "v.mp4", "w.mp4"]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "sub/a.png")), draw_boxes(GREY, _found(), METADATA))
    video = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 5)
    assert image_name("x/y.JPG") == Path("x/y.JPG")


def test_coco_results_load_with_their_images(tmp_path: Path) -> None:
    with CocoWriter(tmp_path, METADATA, 2) as writer:
        writer.write(_frame("a.png"), _found())
        writer.write(_frame("b.png"), _found(0))
        writer.write(_frame("v.mp4", 7), _found(1))
    data = COCO(str(tmp_path / "coco_images.json"))
    results = data.loadRes(str(tmp_path / "coco_results.json"))
    assert [image["file_name"] for image in data.loadImgs([1, 2, 3])] == ["a.png", "b.png", "v.mp4#7"]
    assert [category["name"] for category in data.loadCats([0, 1])] == ["car", "van"]
    assert [len(results.getAnnIds(imgIds=[i])) for i in (1, 2, 3)] == [2, 0, 1]
    assert results.loadAnns(1)[0]["bbox"] == [10, 20, 20, 20]


def test_coco_results_take_the_ids_of_a_data_set(tmp_path: Path) -> None:
    with CocoWriter(tmp_path, METADATA, 2, {"a.png": 77}) as writer:
        writer.write(_frame("sub/a.png"), _found(1))
    assert json.loads((tmp_path / "coco_results.json").read_text())[0]["image_id"] == 77
    with pytest.raises(DatasetError, match=r"no file_name 'b\.png'"), CocoWriter(tmp_path, METADATA, 2, {}) as writer:
        writer.write(_frame("b.png"), _found(1))


def test_nothing_found_gives_files_that_can_be_read(tmp_path: Path) -> None:
    with CocoWriter(tmp_path, METADATA, 2), CsvWriter(tmp_path / "d.csv", METADATA):
        pass
    assert json.loads((tmp_path / "coco_results.json").read_text()) == []
    assert (tmp_path / "d.csv").read_text().strip() == "file,frame,class,class_id,score,x0,y0,x1,y1"


def test_the_table_has_a_row_per_detection(tmp_path: Path) -> None:
    with CsvWriter(tmp_path / "d.csv", METADATA) as writer:
        writer.write(_frame("a,b.png"), _found())
        writer.write(_frame("v.mp4", 3), _found(1))
    with open(tmp_path / "d.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1] == ["a,b.png", "", "car", "0", "0.7500", "10.00", "20.00", "30.00", "40.00"]
    assert rows[3][:3] == ["v.mp4", "3", "car"]


def _write_and_fail(folder: Path) -> None:
    coco, table = CocoWriter(folder, METADATA, 2), CsvWriter(folder / "d.csv", METADATA)
    with coco, table, DrawingWriter(folder, METADATA) as drawing:
        for writer in (coco, table, drawing):
            writer.write(_frame("v.mp4", 0), _found())
        raise ZeroDivisionError


def test_an_error_leaves_no_half_written_file(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("of an earlier run")
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(tmp_path)
    assert _files(tmp_path) == ["d.csv"]
    assert (tmp_path / "d.csv").read_text() == "of an earlier run"


def test_a_replaced_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as path:
        path.write_text("first")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), replacing(target) as path:
        path.with_name("nowhere").read_text()
    assert target.read_text() == "first"
    assert _files(tmp_path) == ["new/a.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full")
@pytest.mark.parametrize("name", ["detections.csv", "coco_results.json", "coco_images.json"])
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, name: str) -> None:
    stem, suffix = os.path.splitext(name)
    (tmp_path / f".{stem}.{os.getpid()}.tmp{suffix}").symlink_to("/dev/full")
    writers = [CsvWriter(tmp_path / "detections.csv", METADATA), CocoWriter(tmp_path, METADATA, 2)]

    def write() -> None:
        with contextlib.ExitStack() as stack:
            for writer in writers:
                stack.enter_context(writer)
            for number in range(1000):
                for writer in writers:
                    writer.write(_frame(f"{number}.jpg"), _found())

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / name}'"):
        write()
    assert not [file for file in _files(tmp_path) if file.endswith((name, ".tmp" + suffix))]


def test_a_video_on_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    writer = DrawingWriter(tmp_path, METADATA)
    with small_files(20_000):
        for number in range(40):
            frame = Frame("v.mp4", "v.mp4", number, np.roll(noise, number * 7, axis=1))
            writer.write(frame, Instances((96, 128), **_found().get_fields()))
        with pytest.raises(DatasetError, match=r"v\.mp4 could not be written: of 40 frames \d+ can be read"):
            writer.__exit__(None)
    assert [path.name for path in tmp_path.iterdir() if path.name != WRITTEN] == []
