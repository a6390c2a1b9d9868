"""Detections as COCO results, rows of a table, and objects of other packages."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

if TYPE_CHECKING:
    import fiftyone
    import supervision


def class_name(metadata: Metadata, number: int) -> str:
    """Name of a class, or its number if it has none."""
    names = metadata.get("thing_classes", [])
    return names[number] if number < len(names) else str(number)


def category_ids(metadata: Metadata, num_classes: int) -> list[int]:
    """COCO category id of each class: the data set's own where they are known, else the numbers of the classes."""
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", {})
    known = {number: category for category, number in contiguous.items()}
    return [known[n] for n in range(num_classes)] if known else list(range(num_classes))


def to_coco_results(instances: Instances, image_id: int | str, categories: Sequence[int] | None = None) -> list[dict]:
    """Detections of one image in COCO's format of results.

    Args:
        instances: on the CPU, with ``pred_boxes``, ``scores`` and ``pred_classes``.
        image_id: the image's id.
        categories: category id of each class; the number of the class if not given.

    Returns:
        Per detection ``image_id``, ``category_id``, ``bbox`` (XYWH px) and ``score``.
    """
    rows = instances_to_coco_json(instances, image_id)
    for row in rows:
        row["category_id"] = row["category_id"] if categories is None else categories[row["category_id"]]
    return rows


def to_supervision(instances: Instances, class_names: Sequence[str] = ()) -> supervision.Detections:
    """Detections as ``supervision.Detections``: for its annotators, trackers, zones and metrics.

    Args:
        instances: on the CPU.
        class_names: of the K classes; with them ``data["class_name"]`` is filled, which annotators show.

    Raises:
        ImportError: if supervision is not installed.
    """
    sv = _import("supervision")
    detections = sv.Detections(
        xyxy=instances.pred_boxes.tensor.numpy().copy(),
        confidence=instances.scores.float().numpy().copy(),
        class_id=instances.pred_classes.numpy().astype(int),
    )
    if class_names:
        detections.data["class_name"] = np.array([class_names[i] for i in instances.pred_classes.tolist()], dtype=str)
    return detections


def to_fiftyone(instances: Instances, class_names: Sequence[str] = ()) -> fiftyone.Detections:
    """Detections as ``fiftyone.Detections``, for a field of a sample.

    Boxes are (x, y, width, height) as shares of the image's sides.

    Raises:
        ImportError: if FiftyOne is not installed.
    """
    fo = _import("fiftyone")
    height, width = instances.image_size
    detections = []
    rows = zip(instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist(), instances.scores.tolist())
    for (x0, y0, x1, y1), number, score in rows:
        box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
        label = class_names[number] if class_names else str(number)
        detections.append(fo.Detection(label=label, bounding_box=box, confidence=score))
    return fo.Detections(detections=detections)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"This needs the package {name}, which is not installed: pip install {name}") from error
