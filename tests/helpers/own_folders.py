"""Small data set folders in every format, each with the same two kinds of boxes, for the tests of ``--data``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (100, 80)  # width, height
BOX = [10.0, 20.0, 30.0, 40.0]  # XYWH px of every object that these folders have
YOLO_LINE = "1 0.25 0.5 0.3 0.5\n"  # BOX: centre (25, 40) of (100, 80), sides (30, 40)


def image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Write an image of noise with a bright rectangle where BOX is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    pixels[20:60, 10:40] = 220
    Image.fromarray(pixels).save(path)
    return path


def images(folder: Path, stems: Iterable[str], suffix: str = ".jpg") -> None:
    for seed, stem in enumerate(stems):
        image(folder / f"{stem}{suffix}", seed=seed)


def coco_content(stems: Iterable[str], *, boxes: Iterable[list[float]] = (BOX,), **changes: Any) -> dict[str, Any]:
    """A json of two classes; every image has the boxes as class 2, "dog"."""
    stems = list(stems)
    images = [{"id": i, "file_name": f"{s}.jpg", "width": 100, "height": 80} for i, s in enumerate(stems, start=1)]
    annotations = [
        {"image_id": image["id"], "category_id": 2, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
        for image in images
        for box in boxes
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco_folder(root: Path, splits: Mapping[str, list[str]]) -> Path:
    for split, stems in splits.items():
        images(root / f"{split}2017", stems)
        write_json(root / f"annotations/instances_{split}2017.json", coco_content(stems))
    return root


def yolo_folder(root: Path, splits: Mapping[str, list[str]], *, yaml: str | None = "names: [cat, dog]\n") -> Path:
    """``images/<split>`` and ``labels/<split>``; a split "" lies directly in them."""
    for split, stems in splits.items():
        images(root / "images" / split, stems)
        for stem in stems:
            label = root / "labels" / split / f"{stem}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(YOLO_LINE)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml + "".join(f"{s or 'train'}: images/{s}\n" for s in splits))
    return root


def voc_xml(stem: str, objects: Iterable[tuple[str, list[int]]], extra: str = "") -> str:
    """Objects are names and corners counted from 1; BOX is (11, 21, 40, 60)."""
    rows = "".join(
        f"<object>\n<name>{name}</name>{extra}<bndbox><xmin>{c[0]}</xmin><ymin>{c[1]}</ymin><xmax>{c[2]}</xmax>"
        f"<ymax>{c[3]}</ymax></bndbox>\n</object>\n"
        for name, c in objects
    )
    size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{stem}.jpg</filename>\n{size}\n{rows}</annotation>\n"


VOC_BOX = [11, 21, 40, 60]


def voc_folder(root: Path, splits: Mapping[str, list[str]]) -> Path:
    for split, stems in splits.items():
        images(root / "JPEGImages", stems)
        for stem in stems:
            xml = root / "Annotations" / f"{stem}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(voc_xml(stem, [("dog", VOC_BOX)]))
        lists = root / "ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def visdrone_folder(root: Path, splits: Mapping[str, list[str]]) -> Path:
    for split, stems in splits.items():
        base = root / f"VisDrone2019-DET-{split}"
        images(base / "images", stems)
        (base / "annotations").mkdir()
        for stem in stems:
            (base / f"annotations/{stem}.txt").write_text("10,20,30,40,1,4,0,0\n0,0,8,8,0,0,0,0\n")
    return root


def uavdt_folder(root: Path, sequences: Iterable[str], frames: int = 2) -> Path:
    truth = root / "UAV-benchmark-MOTD_v1.0/GT"
    truth.mkdir(parents=True)
    for sequence in sequences:
        images(root / "UAV-benchmark-M" / sequence, [f"img{frame:06d}" for frame in range(1, frames + 1)])
        lines = "".join(f"{frame},1,10,20,30,40,1,1,1\n" for frame in range(1, frames + 1))
        (truth / f"{sequence}_gt_whole.txt").write_text(lines)
        (truth / f"{sequence}_gt_ignore.txt").write_text("1,1,0,0,8,8,1,1,0\n")
    return root


def crowdhuman_folder(root: Path, splits: Mapping[str, list[str]]) -> Path:
    for split, stems in splits.items():
        images(root / "Images", stems)
        rows = [
            {
                "ID": stem,
                "gtboxes": [{"tag": "person", "fbox": [10, 20, 30, 40]}, {"tag": "mask", "fbox": [0, 0, 8, 8]}],
            }
            for stem in stems
        ]
        (root / f"annotation_{split}.odgt").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def labelme_json(stem: str, shapes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """As labelme writes it, the image left out of the file."""
    size = {"imagePath": f"{stem}.jpg", "imageData": None, "imageHeight": 80, "imageWidth": 100}
    return {"version": "5.5.0", "flags": {}, "shapes": list(shapes), **size}


def labelme_shape(label: str, points: list[list[float]], shape_type: str = "rectangle", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": shape_type, "flags": {}, **more}


def labelme_folder(root: Path, splits: Mapping[str, list[str]]) -> Path:
    for split, stems in splits.items():
        images(root / split, stems)
        for stem in stems:
            shapes = [labelme_shape("dog", [[40.0, 60.0], [10.0, 20.0]])]  # from the lower right corner
            write_json(root / split / f"{stem}.json", labelme_json(stem, shapes))
    return root


SPLITS = {"train": ["a", "b", "c"], "val": ["d"]}


def folder_of(data_format: str, root: Path) -> Path:
    """A folder with three images to train on and one to evaluate (UAVDT: sequences of two images)."""
    makers = {"coco": coco_folder, "yolo": yolo_folder, "voc": voc_folder, "visdrone": visdrone_folder}
    makers |= {"crowdhuman": crowdhuman_folder, "labelme": labelme_folder}
    return uavdt_folder(root, ["M0101", "M0203"]) if data_format == "uavdt" else makers[data_format](root, SPLITS)
