"""Data sets of a few boxes, registered by kind of evaluator, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2_ext.report.judged import Judged, judge

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

NAME = "tests_report"
EVIL = "<script>alert('x')</script>"
CLASSES = ["car", EVIL]


def objects(*rows: tuple[int, list[float]]) -> list[dict[str, Any]]:
    """Annotations of (class, box XYWH)."""
    return [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": k, "iscrowd": 0} for k, box in rows]


def detection(image_id: int, category_id: int, box: list[float], score: float) -> dict[str, Any]:
    """A row of COCO results."""
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


@contextmanager
def registered(folder: Path, kind: str, images: Sequence[dict[str, Any]], **metadata: Any) -> Iterator[str]:
    """Images of 200 x 100 px with the given keys (``annotations``, ``ignore_regions``), registered as ``NAME``."""
    records = []
    for number, keys in enumerate(images, start=1):
        path = folder / f"{number}<b>.png"
        Image.new("RGB", (200, 100), (40 * number, 90, 60)).save(path)
        records.append({"file_name": str(path), "image_id": number, "width": 200, "height": 100, **keys})
    DatasetCatalog.register(NAME, lambda: records)
    own_ids = {1: 0, 2: 1}
    MetadataCatalog.get(NAME).set(
        evaluator_type=kind, thing_classes=CLASSES, thing_dataset_id_to_contiguous_id=own_ids, **metadata
    )
    try:
        yield NAME
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def judged(folder: Path, rows: Sequence[dict[str, Any]]) -> Judged:
    """The registered data set with these results."""
    path = folder / "coco_instances_results.json"
    path.write_text(json.dumps(list(rows)))
    return judge(NAME, path, max_detections=100, command="evaluate")
