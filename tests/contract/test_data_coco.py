"""Reading and writing of COCO's format, on either implementation of Detectron2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json, load_coco_json, register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

NAME = "contract_toy"


@pytest.fixture(autouse=True)
def _free_name() -> Iterator[None]:
    yield
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def anno(anno_id: int, image_id: int, category_id: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    area = bbox[2] * bbox[3] if bbox else 0
    common = {"id": anno_id, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area}
    return {**common, "iscrowd": 0, **more}


def write(folder: Path, annotations: list[dict[str, Any]], name: str = "a.json") -> str:
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 120} for i in (5, 2, 9)],
        "categories": [{"id": 7, "name": "ship"}, {"id": 3, "name": "car"}],
        "annotations": annotations,
    }
    path = folder / name
    path.write_text(json.dumps(content))
    return str(path)


def test_records_by_hand(tmp_path: Path) -> None:
    triangle = [1, 1, 9, 1, 9, 9]
    annotations = [
        anno(1, 2, 3, [10, 10, 40, 30], segmentation=[triangle, [1, 1, 2, 2]]),
        anno(2, 2, 7, [60, 50, 20, 20], score=0.5),
        anno(3, 5, 7, [0, 0, 9, 9], segmentation=[]),
    ]
    records = load_coco_json(write(tmp_path, annotations), "images", NAME)
    box = {"iscrowd": 0, "bbox_mode": BoxMode.XYWH_ABS}
    objects = {
        2: [
            {"bbox": [10, 10, 40, 30], "category_id": 0, "segmentation": [triangle], **box},
            {"bbox": [60, 50, 20, 20], "category_id": 1, **box},
        ],
        5: [{"bbox": [0, 0, 9, 9], "category_id": 1, **box}],
        9: [],
    }
    size = {"height": 100, "width": 120}
    assert records == [
        {"file_name": f"images/{i}.png", "image_id": i, **size, "annotations": found} for i, found in objects.items()
    ]
    meta = MetadataCatalog.get(NAME)
    assert meta.thing_classes == ["car", "ship"]  # in the order of their ids
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_without_a_name_categories_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, [anno(1, 2, 7, [0, 0, 5, 5], score=0.5)])
    record = load_coco_json(path, tmp_path, extra_annotation_keys=["score"])[0]
    assert record["annotations"][0]["category_id"] == 7
    assert record["annotations"][0]["score"] == 0.5
    assert "area" not in record["annotations"][0]


def test_invalid_polygons_are_left_out_and_uncompressed_rle_is_compressed(tmp_path: Path) -> None:
    bad = [[1, 1, 2, 2], [1, 2, 3, 4, 5, 6, 7]]
    rle = {"size": [4, 3], "counts": [2, 3, 7]}  # column by column: 2 pixels off, 3 on, the rest off
    boxes = [0, 0, 5, 5], [0, 0, 2, 4]
    path = write(tmp_path, [anno(i, 2, 3, box, segmentation=s) for i, (box, s) in enumerate(zip(boxes, (bad, rle)))])
    (found,) = load_coco_json(path, tmp_path)[0]["annotations"]
    assert found["bbox"] == boxes[1]
    mask = mask_util.decode(found["segmentation"])
    assert mask.T.reshape(-1).tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("annotations", "error"),
    [
        ([anno(1, 2, 3, [])], ValueError),
        ([anno(1, 2, 4, [0, 0, 5, 5])], KeyError),
        ([anno(1, 2, 3, [0, 0, 5, 5], ignore=1)], AssertionError),
        ([anno(1, 2, 3, [0, 0, 5, 5]), anno(1, 5, 3, [0, 0, 5, 5])], AssertionError),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, annotations: list, error: type[Exception]) -> None:
    with pytest.raises(error):
        load_coco_json(write(tmp_path, annotations), tmp_path, NAME)


def test_registration_is_lazy_and_keeps_the_first_loader_and_class_names(
    tmp_path: Path,
) -> None:
    register_coco_instances(NAME, {"color": "red"}, str(tmp_path / "later.json"), tmp_path)
    meta = MetadataCatalog.get(NAME)
    assert (meta.evaluator_type, meta.color) == ("coco", "red")
    assert meta.json_file == str(tmp_path / "later.json")
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get(NAME)
    write(tmp_path, [], "later.json")
    assert len(DatasetCatalog.get(NAME)) == 3
    register_coco_instances(NAME, {}, str(tmp_path / "later.json"), tmp_path)  # the same again is no error
    with pytest.raises(AssertionError):
        register_coco_instances(NAME, {}, str(tmp_path / "other.json"), tmp_path)
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove(NAME)
    register_coco_instances(NAME, {"thing_classes": ["ship", "car"]}, write(tmp_path, []), tmp_path)
    with pytest.raises(AssertionError, match="thing_classes"):
        DatasetCatalog.get(NAME)


def custom(records: list[dict[str, Any]], **metadata: Any) -> None:
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["car", "ship"], **metadata)


def test_records_become_a_coco_file() -> None:
    square = [[10.0, 10.0, 14.0, 10.0, 14.0, 14.0, 10.0, 14.0]]
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[2:5, 3:8] = 1
    ship, size = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}, {"height": 20, "width": 30}
    annotations = [
        {"bbox": [1, 2, 4, 7.00049], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
        {"bbox": np.array([10.0, 10.0, 5.0, 5.0]), **ship, "iscrowd": 1, "segmentation": square},
        {"bbox": [3, 2, 5, 3], **ship, "segmentation": mask_util.encode(mask)},
    ]
    records = [
        {"file_name": "b.png", **size},
        {"file_name": "a.png", "image_id": 77, **size, "annotations": annotations},
    ]
    custom(records, thing_dataset_id_to_contiguous_id={3: 0, 7: 1})
    coco = convert_to_coco_dict(NAME)
    assert coco["categories"] == [{"id": 3, "name": "car"}, {"id": 7, "name": "ship"}]
    assert coco["images"] == [
        {"id": 0, "width": 30, "height": 20, "file_name": "b.png"},
        {"id": 77, "width": 30, "height": 20, "file_name": "a.png"},
    ]
    plain, crowd, masked = coco["annotations"]
    area = plain.pop("area")
    assert area == pytest.approx(3 * 5.00049, rel=1e-6)
    assert plain == {"id": 1, "image_id": 77, "bbox": [1.0, 2.0, 3.0, 5.0], "iscrowd": 0, "category_id": 3}
    assert (crowd["id"], crowd["iscrowd"], crowd["category_id"], crowd["area"]) == (2, 1, 7, 16.0)
    assert masked["area"] == 15.0
    json.dumps(coco)  # no arrays, no bytes


def test_without_annotations_the_file_has_none() -> None:
    custom([{"file_name": "a.png", "height": 20, "width": 30, "annotations": []}])
    coco = convert_to_coco_dict(NAME)
    assert "annotations" not in coco
    assert [c["id"] for c in coco["categories"]] == [0, 1]


def test_a_written_file_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    records = [{"file_name": "a.png", "height": 20, "width": 30}]
    custom(records)
    path = str(tmp_path / "sub" / "c.json")
    for allow_cached, more, images in ((True, 0, 1), (True, 1, 1), (False, 0, 2)):
        records.extend({"file_name": "b.png", "height": 20, "width": 30} for _ in range(more))
        convert_to_coco_json(NAME, path, allow_cached=allow_cached)
        assert len(json.loads(Path(path).read_text())["images"]) == images


def test_writing_and_reading_gives_the_same_records(tmp_path: Path) -> None:
    box = {"bbox": [1.0, 2.0, 3.0, 5.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    records = [{"file_name": "a.png", "image_id": 4, "height": 20, "width": 30, "annotations": [box]}]
    custom(records, thing_dataset_id_to_contiguous_id={3: 0, 7: 1})
    path = str(tmp_path / "c.json")
    convert_to_coco_json(NAME, path)
    assert load_coco_json(path, "", NAME) == records
