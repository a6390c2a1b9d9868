"""Detections of a run against the ground truth, by the rules of the data set.

All rules are brought into the form of COCO's metric, which pycocotools computes:

- ``coco``: the data set's own json, or its records; ignore regions as crowds where the metadata says so.
- ``crowdhuman``: ignore regions as crowds, which is CrowdHuman's rule.
- ``visdrone``: objects and detections inside ignored regions are taken out first (rules 1 and 2 of
  :mod:`d2_ext.evaluation.visdrone_metric`); objects marked as ignored are crowds (rule 3).

Boxes are XYWH px of the file's image. Letters: T IoU thresholds, R recall points, K classes, D detections, G objects.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError
from d2_ext.evaluation.coco_regions import coco_with_regions
from d2_ext.evaluation.visdrone import image_boxes
from d2_ext.evaluation.visdrone_metric import (
    MAX_DETS,
    VisDroneResult,
    drop_ignored_regions,
    evaluate_visdrone,
)
from d2_ext.report.blocks import MissingInput

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZES = ("small", "medium", "large")
RULES = {
    "coco": "COCO's rules",
    "crowdhuman": "COCO's measures; detections in ignore regions are not judged",
    "visdrone": "VisDrone's official rules; objects and detections in ignored regions are not judged",
}


@dataclass(frozen=True)
class Judged:
    """Ground truth and detections of one test set.

    Attributes:
        dataset: its name.
        rule: key of ``RULES``.
        class_names: K.
        category_ids: K, the data set's own.
        records: data set dicts by image id.
        truth: what is judged against.
        detections: rows of COCO results, those that are judged.
        max_detections: of an image that count.
        visdrone: the official metric, for such data sets.
    """

    dataset: str
    rule: str
    class_names: list[str]
    category_ids: list[int]
    records: Mapping[Any, Mapping[str, Any]]
    truth: COCO
    detections: list[dict[str, Any]]
    max_detections: int
    visdrone: VisDroneResult | None = None

    @cached_property
    def by_image(self) -> Mapping[Any, list[dict[str, Any]]]:
        """Detections by image id, best first."""
        rows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in sorted(self.detections, key=lambda row: -row["score"]):
            rows[row["image_id"]].append(row)
        return rows

    @cached_property
    def accumulated(self) -> dict[str, np.ndarray]:
        """``precision`` and ``scores`` (T, R, K, 4 sizes) of COCO's evaluation; -1 where a class has no objects."""
        with contextlib.redirect_stdout(io.StringIO()):
            # In the form of pycocotools, also if there are no detections (which its `loadRes` refuses).
            annotations = [
                {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
                for number, row in enumerate(self.detections, start=1)
            ]
            shared = {key: self.truth.dataset[key] for key in ("images", "categories")}
            evaluation = COCOeval(self.truth, _coco({**shared, "annotations": annotations}), "bbox")
            evaluation.params.maxDets = [1, 10, self.max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return {name: evaluation.eval[name][..., -1] for name in ("precision", "scores")}

    def objects_per_class(self) -> list[list[int]]:
        """(K, 3) objects that count, by COCO's three sizes."""
        table = np.zeros((len(self.category_ids), len(SIZES)), dtype=int)
        for row in self.truth.dataset["annotations"]:
            if not row.get("iscrowd", 0):
                size = int(np.digitize(row["area"], (32**2, 96**2)))
                table[self.category_ids.index(row["category_id"]), size] += 1
        return table.tolist()


def judge(dataset: str, results_file: Path, *, max_detections: int, command: str) -> Judged:
    """Load ground truth and detections of a data set.

    Args:
        dataset: its registered name.
        results_file: ``coco_instances_results.json``.
        max_detections: ``TEST.DETECTIONS_PER_IMAGE``.
        command: what makes the results file, for the note where it is missing.

    Raises:
        MissingInput: if the data set is not registered, has no annotations, or there are no results.
        DatasetError: if the data set or the results cannot be used.
    """
    if dataset not in DatasetCatalog:
        raise MissingInput(
            f"The data set '{dataset}' is not registered here, so there is no ground truth. If it is a folder with a "
            "COCO json, name it with --data.",
            "d2_ext report RUN_FOLDER --data FOLDER",
        )
    if not results_file.is_file():
        raise MissingInput(f"There are no detections on '{dataset}': no file {results_file}.", command)
    rows = _read_results(results_file)
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    if not any("annotations" in record for record in records.values()):
        raise MissingInput(f"The data set '{dataset}' has no annotations: nothing can be judged on it.")
    metadata = MetadataCatalog.get(dataset)
    kind = metadata.get("evaluator_type", "coco")
    names = [str(name) for name in metadata.thing_classes]
    strangers = {row["image_id"] for row in rows} - set(records)
    if strangers:
        raise DatasetError(
            f"{results_file} has detections on image {next(iter(strangers))!r} (and {len(strangers) - 1} more), "
            f"which '{dataset}' has not. Evaluate again on this data set: {command}"
        )
    if kind == "visdrone":
        return _judge_visdrone(dataset, names, records, rows)
    # As ``d2_ext.evaluation.build_evaluator`` has the metric of COCO computed.
    json_file = metadata.get("json_file")
    if json_file:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    elif kind == "crowdhuman" or metadata.get("coco_ignore_regions", False):
        content = coco_with_regions(dataset)
    else:
        content = convert_to_coco_dict(dataset)
    truth = _coco(content)
    ids = sorted(truth.getCatIds())
    rows = [row for row in rows if row["category_id"] in ids]
    return Judged(dataset, kind, names, ids, records, truth, rows, max_detections)


def _judge_visdrone(
    dataset: str, names: list[str], records: Mapping[Any, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> Judged:
    own_ids = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id", {})
    ids = sorted(own_ids, key=own_ids.get) or list(range(len(names)))
    by_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["category_id"] in ids:
            by_image[row["image_id"]].append(row)
    content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": name} for i, name in zip(ids, names)]
    images, kept = [], []
    for key, record in records.items():
        own = by_image[key]
        images.append(
            image_boxes(
                record,
                len(names),
                boxes=np.array([row["bbox"] for row in own], dtype=np.float64).reshape(-1, 4),
                scores=np.array([row["score"] for row in own], dtype=np.float64),
                classes=np.array([ids.index(row["category_id"]) for row in own], dtype=np.int64),
            )
        )
        judged = drop_ignored_regions(images[-1])
        content["images"].append({"id": key, "width": record["width"], "height": record["height"]})
        for box, k, ignored in zip(judged.gt_boxes.tolist(), judged.gt_classes, judged.gt_ignored, strict=True):
            number = len(content["annotations"]) + 1
            row = {"id": number, "image_id": key, "category_id": ids[k], "iscrowd": int(ignored)}
            content["annotations"].append({**row, "bbox": box, "area": box[2] * box[3]})
        kept += [
            {"image_id": key, "category_id": ids[k], "bbox": box, "score": score}
            for box, score, k in zip(
                judged.det_boxes.tolist(), judged.det_scores.tolist(), judged.det_classes, strict=True
            )
        ]
    official = evaluate_visdrone(images, len(names))
    return Judged(dataset, "visdrone", names, ids, records, _coco(content), kept, MAX_DETS[-1], official)


def _coco(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _read_results(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not all(len(row["bbox"]) == 4 and isinstance(row["image_id"], int | str) for row in rows):
            raise ValueError("a row without four numbers of a box, or without an image")
        return [
            {
                "image_id": row["image_id"],
                "category_id": int(row["category_id"]),
                "bbox": [float(value) for value in row["bbox"]],
                "score": float(row["score"]),
            }
            for row in rows
        ]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{path} is not a list of COCO results ({type(error).__name__}: {error}). Evaluate again."
        ) from error
