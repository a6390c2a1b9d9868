"""Folders as annotation tools export them: CVAT, Roboflow, Label Studio, labelme; read as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2_ext.data.check import check_folder
from d2_ext.data.folder import describe, register_folder
from d2_ext.data.formats import recognize
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.own_folders import (
    BOX,
    VOC_BOX,
    YOLO_LINE,
    coco_content,
    images,
    labelme_json,
    labelme_shape,
    voc_xml,
    write_json,
)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _beside(folder: Path, stems: str, suffix: str, text: Callable[[str], str]) -> None:
    """Images with a label file each, in one folder."""
    images(folder, stems)
    for stem in stems:
        _write(folder / f"{stem}{suffix}", text(stem))


def _named(content: dict[str, Any], pattern: str, **categories: Any) -> dict[str, Any]:
    """The content with other names of files."""
    for row in content["images"]:
        row["file_name"] = pattern.format(row["file_name"])
    return {**content, **categories}


def cvat_yolo(root: Path) -> None:
    """CVAT, YOLO 1.1: paths begin with a folder ``data`` that the archive has not got."""
    _beside(root / "obj_train_data", "abc", ".txt", lambda _: YOLO_LINE)
    _write(root / "obj.names", "cat\ndog\n")
    _write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    _write(root / "train.txt", "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in "abc"))


def cvat_yolo_subsets(root: Path) -> None:
    """The same with subsets, and frames in folders of their own."""
    cvat_yolo(root)
    _beside(root / "obj_valid_data/flight1", "d", ".txt", lambda _: YOLO_LINE)
    _write(root / "valid.txt", "data/obj_valid_data/flight1/d.jpg\n")


def cvat_ultralytics(root: Path) -> None:
    """CVAT, Ultralytics YOLO Detection 1.0."""
    images(root / "images/train", "ab")
    for stem in "ab":
        _write(root / f"labels/train/{stem}.txt", YOLO_LINE)
    _write(root / "train.txt", "data/images/train/a.jpg\ndata/images/train/b.jpg\n")
    _write(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")


def cvat_coco(root: Path) -> None:
    images(root / "images/default", "ab")
    write_json(root / "annotations/instances_default.json", coco_content("ab", licenses=[], info={}))


def cvat_voc(root: Path) -> None:
    images(root / "JPEGImages", "ab")
    for stem in "ab":
        _write(root / f"Annotations/{stem}.xml", voc_xml(stem, [("dog", VOC_BOX)]))
    _write(root / "ImageSets/Main/default.txt", "a\nb\n")
    _write(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:10,20,30::\n")


def roboflow_yolo(root: Path) -> None:
    """Roboflow, YOLOv8: paths one level off, and a test that is not in the archive."""
    for split in ("train", "valid"):
        images(root / split / "images", "ab")
        for stem in "ab":
            _write(root / f"{split}/labels/{stem}.txt", YOLO_LINE)
    _write(root / "README.roboflow.txt", "drones - v1\n")
    _write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n\n"
        "roboflow:\n  workspace: me\n  version: 1\n",
    )


def roboflow_coco(root: Path) -> None:
    """Roboflow, COCO: the project is category 0."""
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
    categories += [{"id": n, "name": name, "supercategory": "pets"} for n, name in ((1, "cat"), (2, "dog"))]
    for split in ("train", "valid", "test"):
        images(root / split, "ab")
        write_json(root / split / "_annotations.coco.json", coco_content("ab", categories=categories, info={}))
    _write(root / "README.dataset.txt", "")


def roboflow_voc(root: Path) -> None:
    for split in ("train", "valid"):
        _beside(root / split, "ab", ".xml", lambda stem: voc_xml(stem, [("dog", VOC_BOX)]))


def roboflow_darknet(root: Path) -> None:
    for split in ("train", "valid"):
        _beside(root / split, "ab", ".txt", lambda _: YOLO_LINE)
        _write(root / split / "_darknet.labels", "cat\ndog\n")


def label_studio_yolo(root: Path) -> None:
    """Label Studio, YOLO: ``notes.json`` has categories, but is no COCO json."""
    images(root / "images", ["1f2e-a", "3d4c-b"])
    for stem in ("1f2e-a", "3d4c-b"):
        _write(root / f"labels/{stem}.txt", YOLO_LINE)
    _write(root / "classes.txt", "cat\ndog\n")
    names = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    write_json(root / "notes.json", {"categories": names, "info": {"year": 2026, "contributor": "Label Studio"}})


def label_studio_coco(root: Path) -> None:
    images(root / "images", "ab")
    write_json(root / "result.json", _named(coco_content("ab", info={}), "images/{}"))


def label_studio_voc(root: Path) -> None:
    images(root / "images", "ab")
    for stem in "ab":
        _write(root / f"Annotations/{stem}.xml", voc_xml(stem, [("dog", VOC_BOX)]))


def labelme_own(root: Path) -> None:
    """labelme's own files: a json beside each image."""
    images(root, "ab")
    for stem in "ab":
        write_json(root / f"{stem}.json", labelme_json(stem, [labelme_shape("dog", [[10, 20], [40, 60]])]))


def labelme_coco(root: Path) -> None:
    """labelme's ``labelme2coco.py``: the background is category 0, drawings lie beside."""
    categories = [
        {"id": n, "name": name, "supercategory": None} for n, name in enumerate(("_background_", "cat", "dog"))
    ]
    images(root / "JPEGImages", "ab")
    images(root / "Visualization", "ab")
    content = coco_content("ab", categories=categories, info={}, licenses=[], type="instances")
    write_json(root / "annotations.json", _named(content, "JPEGImages/{}"))


def labelme_voc(root: Path) -> None:
    """labelme's ``labelme2voc.py``."""
    images(root / "JPEGImages", "ab")
    images(root / "AnnotationsVisualization", "ab")
    for stem in "ab":
        _write(root / f"Annotations/{stem}.xml", voc_xml(stem, [("dog", VOC_BOX)]))
    _write(root / "class_names.txt", "_background_\ndog")


BOTH = ("cat", "dog")
EXPORTS: dict[Callable[[Path], None], tuple[str, dict[str, int], tuple[str, ...]]] = {
    cvat_yolo: ("yolo", {"train": 3}, BOTH),
    cvat_yolo_subsets: ("yolo", {"train": 3, "val": 1}, BOTH),
    cvat_ultralytics: ("yolo", {"train": 2}, BOTH),
    cvat_coco: ("coco", {"all": 2}, BOTH),
    cvat_voc: ("voc", {"all": 2}, ("dog",)),
    roboflow_yolo: ("yolo", {"train": 2, "val": 2}, BOTH),
    roboflow_coco: ("coco", {"train": 2, "val": 2, "test": 2}, BOTH),
    roboflow_voc: ("voc", {"train": 2, "val": 2}, ("dog",)),
    roboflow_darknet: ("yolo", {"train": 2, "val": 2}, BOTH),
    label_studio_yolo: ("yolo", {"all": 2}, BOTH),
    label_studio_coco: ("coco", {"all": 2}, BOTH),
    label_studio_voc: ("voc", {"all": 2}, ("dog",)),
    labelme_own: ("labelme", {"all": 2}, ("dog",)),
    labelme_coco: ("coco", {"all": 2}, BOTH),
    labelme_voc: ("voc", {"all": 2}, ("dog",)),
}


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_exports_of_tools_are_read_as_they_are(export: Callable[[Path], None], tmp_path: Path) -> None:
    root = tmp_path / "export"
    root.mkdir()
    export(root)
    data = recognize(root)
    data_format, splits, classes = EXPORTS[export]
    assert (data.format, data.classes) == (data_format, classes)
    assert {split.name: split.num_images for split in data.splits} == splits
    for split in data.splits:
        for record in split.read(Problems()):
            (annotation,) = record["annotations"]
            assert annotation["bbox"] == pytest.approx(BOX)
            assert classes[annotation["category_id"]] == "dog"
    own = register_folder(root)  # with one split a part is held out
    try:
        assert own.train
        assert own.test
    finally:
        for name in own.images:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_missing_images_of_a_list_are_counted_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cvat_yolo(tmp_path)
    for stem in "bc":
        (tmp_path / f"obj_train_data/{stem}.jpg").unlink()
    data = recognize(tmp_path)
    note = "train: 2 of 3 images are missing and left out, first: data/obj_train_data/b.jpg"
    assert note in data.notes
    assert len(data.splits[0].read(Problems())) == 1
    assert f"dropped 2 missing images, first: {tmp_path / 'train.txt'}, line 2" in caplog.text
    (report,) = check_folder(data)
    assert [(p.severity, p.kind) for p in report.found] == [("warning", "dropped missing images")] * 2
    (tmp_path / "obj_train_data/a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"names 3 images, and none of them .* exported the labels alone"):
        recognize(tmp_path)


def test_an_absent_test_of_a_description_stops_nothing_and_is_told(tmp_path: Path) -> None:
    roboflow_yolo(tmp_path / "pets")
    own = register_folder(tmp_path / "pets")
    assert (own.train, own.test) == (("own_pets_train",), ("own_pets_val",))
    assert "data.yaml: there is nothing at '../test/images', so 'test' is left out" in describe(own)
    (tmp_path / "pets/data.yaml").write_text("train: ../train/images\nval: ../nowhere/images\nnames: ['cat', 'dog']\n")
    with pytest.raises(DatasetError, match="'val': nothing at"):
        recognize(tmp_path / "pets")
