"""The reader of UAVDT's official form: hand-written sequences and malformed files."""

from __future__ import annotations

import logging
from pathlib import Path

from d2_ext.data.formats.uavdt import UAVDT_CLASSES, UAVDT_SEQUENCES, load_uavdt, register_uavdt
from d2_ext.errors import DatasetError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

GOOD = "1,1,10,20,30,40,1,1,1\n1,2,50,6,7,8,1,1,3\n3,1,11,20,30,40,1,1,2\n"


def _sequence(root: Path, name: str, objects: str, regions: str = "", *, frames: int = 3) -> Path:
    images, truth = root / "UAV-benchmark-M" / name, root / "UAV-benchmark-MOTD_v1.0/GT"
    for folder in (images, truth):
        folder.mkdir(parents=True, exist_ok=True)
    for frame in range(1, frames + 1):
        Image.new("RGB", (100, 80)).save(images / f"img{frame:06d}.jpg")
    (truth / f"{name}_gt_whole.txt").write_text(objects)
    (truth / f"{name}_gt_ignore.txt").write_text(regions)
    return root


def test_objects_and_regions_are_read_frame_by_frame(tmp_path: Path) -> None:
    _sequence(tmp_path, "M0101", GOOD, "1,-1,0,0,100,9,-1,-1,-1\n2,-1,0,0,100,9\n3,-1,5,5,6,7,-1,-1,-1\n")
    _sequence(tmp_path, "M0203", "2,1,1,2,3,4,1,1,1\n")
    first, third, other = load_uavdt(tmp_path, ["M0101", "M0203"])
    assert [r["image_id"] for r in (first, third, other)] == [1, 2, 3]
    # frame 2 of the first sequence has no object: it is left out
    assert [Path(r["file_name"]).name for r in (first, third, other)] == [f"img00000{i}.jpg" for i in (1, 3, 2)]
    assert [(a["bbox"], a["category_id"]) for a in first["annotations"]] == [
        ([10, 20, 30, 40], 0),
        ([50, 6, 7, 8], 2),
    ]
    assert (first["ignore_regions"], third["ignore_regions"]) == ([[0, 0, 100, 9]], [[5, 5, 6, 7]])
    assert (other["width"], other["height"], other["ignore_regions"]) == (100, 80, [])


def test_boxes_without_area_or_outside_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = GOOD + "1,9,10,20,0,40,1,1,1\n1,9,100,0,5,5,1,1,1\n"
    with caplog.at_level(logging.WARNING):
        records = load_uavdt(_sequence(tmp_path, "M0101", objects, "1,-1,0,-9,9,9\n"), ["M0101"])
    assert sum(len(r["annotations"]) for r in records) == 3
    assert "dropped 1 boxes without area" in caplog.text
    assert "dropped 1 boxes outside the image" in caplog.text
    assert "dropped 1 ignore regions outside the image" in caplog.text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,2,3,4,5,6,1,1", "has 8 fields instead of 9"),
        ("1,2,x,4,5,6,1,1,1", "not a number"),
        ("1,2,inf,4,5,6,1,1,1", "not finite"),
        ("0,2,3,4,5,6,1,1,1", "has frame 0"),
        ("1.5,2,3,4,5,6,1,1,1", "has frame 1.5"),
        ("1,2,3,4,-5,6,1,1,1", "negative width or height"),
        ("1,2,3,4,5,6,1,1,4", "category 4"),
        ("1,2,3,4,5,6,1,1,0", "category 0"),
    ],
)
def test_a_malformed_line_is_reported_with_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    _sequence(tmp_path, "M0101", "1,1,10,20,30,40,1,1,1\n" + line + "\n")
    with pytest.raises(DatasetError, match=rf"M0101_gt_whole\.txt, line 2: .*{problem}"):
        load_uavdt(tmp_path, ["M0101"])


def test_a_malformed_region_is_reported_too(tmp_path: Path) -> None:
    _sequence(tmp_path, "M0101", GOOD, "1,-1,0,0,100\n")
    with pytest.raises(DatasetError, match=r"M0101_gt_ignore\.txt, line 1: .*5 fields instead of 6"):
        load_uavdt(tmp_path, ["M0101"])


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        load_uavdt(tmp_path / "nowhere", ["M0101"])
    (tmp_path / "deeper").mkdir()
    with pytest.raises(DatasetError, match="contains deeper"):
        load_uavdt(tmp_path, ["M0101"])
    root = _sequence(tmp_path / "data", "M0101", GOOD)
    with pytest.raises(DatasetError, match=r"No folder .*M0110.*Did you mean 'M0101'"):
        load_uavdt(root, ["M0110"])
    (root / "UAV-benchmark-M/M0101/img000003.jpg").unlink()
    with pytest.raises(DatasetError, match="1 of 2 images .*first: 'img000003.jpg'"):
        load_uavdt(root, ["M0101"])
    (root / "UAV-benchmark-MOTD_v1.0/GT/M0101_gt_ignore.txt").unlink()
    with pytest.raises(DatasetError, match="No file .*M0101_gt_ignore.txt"):
        load_uavdt(root, ["M0101"])
    broken = _sequence(tmp_path / "broken", "M0101", GOOD)
    (broken / "UAV-benchmark-M/M0101/img000001.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="img000001.jpg' cannot be read"):
        load_uavdt(broken, ["M0101"])


def test_the_annotations_may_lie_directly_below_the_root(tmp_path: Path) -> None:
    root = _sequence(tmp_path, "M0101", GOOD)
    (root / "UAV-benchmark-MOTD_v1.0/GT").rename(root / "GT")
    assert len(load_uavdt(root, ["M0101"])) == 2


def test_the_splits_are_30_and_20_sequences_without_overlap() -> None:
    train, test = (UAVDT_SEQUENCES[split] for split in ("train", "test"))
    assert (len(set(train)), len(set(test)), len(set(train) | set(test))) == (30, 20, 50)
    for split in ("train", "test"):
        metadata = MetadataCatalog.get(f"uavdt_{split}")
        assert f"uavdt_{split}" in DatasetCatalog
        assert metadata.thing_classes == list(UAVDT_CLASSES) == ["car", "truck", "bus"]
        assert (metadata.evaluator_type, metadata.coco_ignore_regions) == ("visdrone", True)


def test_registration_is_lazy_and_a_name_is_taken_once(tmp_path: Path) -> None:
    name = "test_uavdt_lazy"
    register_uavdt(name, tmp_path, ["M0101"])
    try:
        with pytest.raises(DatasetError, match="already registered"):
            register_uavdt(name, tmp_path, ["M0101"])
        _sequence(tmp_path, "M0101", GOOD)
        assert len(DatasetCatalog.get(name)) == 2
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
