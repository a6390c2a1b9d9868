"""COCO's metrics of boxes and masks, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate
from torchvision.ops import box_convert

from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_CLASSES_A_ROW = 3


class COCOEvaluator(DatasetEvaluator):
    """AP of boxes or masks, in percent. Metrics that nothing defines are NaN.

    Args:
        dataset_name: a registered data set. One without ``json_file`` in its metadata is written to ``output_dir`` in
            COCO's format, and the metadata gets that file.
        tasks: what is judged, ``"bbox"``, ``"segm"``; all that was predicted if not given.
        distributed: collect the predictions of all processes on the main one; else each judges its own.
        output_dir: gets ``instances_predictions.pth``, the predictions by image, and ``coco_instances_results.json``,
            a list of all with the data set's own category ids; nothing is written without it.
        max_dets_per_image: most detections of an image that count, those with the highest scores; 100 if not given.
        use_fast_impl: without effect; results are those of pycocotools.
        kpt_oks_sigmas: of keypoints, which need Detectron2 itself (NotImplementedError).
        allow_cached_coco: use a file in COCO's format that an earlier evaluator has written.

    Raises:
        ValueError: for a data set that has to be written, without ``output_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        if isinstance(tasks, CfgNode):
            logger.warning("COCOEvaluator takes names of tasks instead of a config; they follow the predictions now.")
            tasks = None
        self.tasks, self.distributed, self.output_dir = tasks, distributed, output_dir
        self._most_detections = 100 if max_dets_per_image is None else max_dets_per_image
        if len(kpt_oks_sigmas) or "keypoints" in (tasks or ()):
            raise NotImplementedError("The evaluation of keypoints needs Detectron2 itself; here are bbox and segm.")
        self.metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self.metadata, "json_file"):
            if output_dir is None:
                raise ValueError(f"Data set {dataset_name!r} has no json_file: without output_dir none can be written.")
            path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, path, allow_cached=allow_cached_coco)
            self.metadata.json_file = path
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it takes
            self._truth = COCO(PathManager.get_local_path(self.metadata.json_file))
        self.reset()

    def reset(self) -> None:
        self._images: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in records with ``image_id`` and outputs with ``instances`` (see :func:`instances_to_coco_json`)."""
        for record, output in zip(inputs, outputs):
            if "instances" in output:
                image_id = record["image_id"]
                rows = instances_to_coco_json(output["instances"].to("cpu"), image_id)
                self._images.append({"image_id": image_id, "instances": rows})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Judge what was processed, on all images of the data set or those of ``img_ids``.

        Gives by task ``AP`` (over IoU 0.50 to 0.95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` (small, medium,
        large objects) and, of two or more classes, ``AP-<class>``; nothing without predictions, without annotations and
        on other processes than the main one. AssertionError for a predicted class that the data set has not.
        """
        images = self._images
        if self.distributed:
            comm.synchronize()
            images = list(chain.from_iterable(comm.gather(images)))
            if not comm.is_main_process():
                return {}
        if not images:
            logger.warning("No predictions to evaluate.")
            return {}
        rows = self._with_category_ids([row for image in images for row in image["instances"]])
        if self.output_dir:
            self._write(images, rows)
        if "annotations" not in self._truth.dataset:
            logger.info("The data set has no annotations: predictions are not evaluated.")
            return {}
        tasks = self.tasks or ["bbox", *(["segm"] if any("segmentation" in row for row in rows) else [])]
        return {task: self._judge(task, rows, img_ids) for task in sorted(tasks)}

    def _with_category_ids(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copies of results in which the numbers of classes became the data set's category ids."""
        numbers = getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None)
        if numbers is None:
            return rows
        ids = {number: category for category, number in numbers.items()}
        unknown = {row["category_id"] for row in rows} - ids.keys()
        assert not unknown, f"Classes {sorted(unknown)} were predicted, but the data set has only {len(ids)}, from 0."
        return [{**row, "category_id": ids[row["category_id"]]} for row in rows]

    def _write(self, images: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        PathManager.mkdirs(self.output_dir)
        with PathManager.open(os.path.join(self.output_dir, "instances_predictions.pth"), "wb") as binary:
            torch.save(images, binary)
        path = os.path.join(self.output_dir, "coco_instances_results.json")
        with PathManager.open(path, "w") as text:
            json.dump(rows, text)
        logger.info("Wrote the predictions to %s.", path)

    def _judge(self, task: str, rows: list[dict[str, Any]], img_ids: Sequence[int] | None) -> dict[str, float]:
        """Metrics of one task, which are logged too."""
        metrics = dict.fromkeys(_METRICS, math.nan)
        classes: dict[str, float] = {}
        if rows:
            judged = self._run_pycocotools(task, rows, img_ids)
            metrics.update(_overall(judged))
            names = self.metadata.get("thing_classes") or ()
            if len(names) > 1:
                precision = judged.eval["precision"][..., 0, -1]  # IoU x recall x class, objects of all areas
                assert precision.shape[2] == len(names), f"{len(names)} of {precision.shape[2]} classes have names."
                classes = {name: _percent(precision[:, :, number]) for number, name in enumerate(names)}
        logger.info("Evaluation results for %s: \n%s", task, create_small_table(metrics))
        if any(map(math.isnan, metrics.values())):
            logger.info("nan: the data set has no object of that kind, or there are no predictions.")
        if classes:
            cells = list(classes.items())
            lines = [sum(cells[n : n + _CLASSES_A_ROW], ()) for n in range(0, len(cells), _CLASSES_A_ROW)]
            titles = ["category", "AP"] * min(_CLASSES_A_ROW, len(cells))
            table = tabulate(lines, titles, tablefmt="pipe", floatfmt=".3f", numalign="left")
            logger.info("Per-category %s AP: \n%s", task, table)
        return {**metrics, **{f"AP-{name}": ap for name, ap in classes.items()}}

    def _run_pycocotools(self, task: str, rows: list[dict[str, Any]], img_ids: Sequence[int] | None) -> COCOeval:
        if task == "segm":  # areas are those of the masks, not those of the boxes
            rows = [{key: value for key, value in row.items() if key != "bbox"} for row in rows]
        judged = COCOevalMaxDets(self._truth, self._truth.loadRes(rows), task)
        judged.params.maxDets = [1, 10, self._most_detections]
        if img_ids is not None:
            judged.params.imgIds = img_ids
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        return judged


class COCOevalMaxDets(COCOeval):
    """pycocotools' ``COCOeval``, whose summary can do with another last limit of detections than 100."""

    def summarize(self) -> None:
        """Print the twelve lines of pycocotools and keep their numbers in ``stats``."""
        first, second, last = limits = self.params.maxDets
        text = io.StringIO()
        self.params.maxDets = [first, second, 100]  # it looks for this number; the results know none
        with contextlib.redirect_stdout(text):
            super().summarize()
        self.params.maxDets = limits
        print(text.getvalue().replace("maxDets=100", f"maxDets={last:>3d}"), end="")  # noqa: T201


def _overall(judged: COCOeval) -> dict[str, float]:
    """The metrics over all classes, in percent, of the largest number of detections."""
    precision, iou = judged.eval["precision"][..., -1], judged.params.iouThrs  # IoU x recall x class x area
    chosen = {"AP": iou > 0, "AP50": np.isclose(iou, 0.5), "AP75": np.isclose(iou, 0.75)}
    found = {name: _percent(precision[at, :, :, 0]) for name, at in chosen.items()}
    areas = judged.params.areaRngLbl  # all, small, medium, large
    return {**found, **{f"AP{areas[n][0]}": _percent(precision[..., n]) for n in range(1, len(areas))}}


def _percent(precision: np.ndarray) -> float:
    """Mean of the precisions that are defined (others are -1) in percent, NaN if none is."""
    defined = precision[precision > -1]
    return float(100 * np.mean(defined)) if defined.size else math.nan


def instances_to_coco_json(instances: Instances, img_id: Any) -> list[dict[str, Any]]:
    """Detections of one image, on the CPU, as COCO's results.

    They have ``pred_boxes`` (XYXY px), ``scores``, ``pred_classes``, and perhaps ``pred_masks`` (N x H x W, bool).
    Gives for each ``image_id``, ``category_id`` (the number of the class), ``bbox`` (XYWH px), ``score``, and perhaps
    ``segmentation`` (run lengths).
    """
    columns = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": box_convert(instances.pred_boxes.tensor, "xyxy", "xywh").tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks") and len(instances):
        stacked = np.asfortranarray(instances.pred_masks.numpy().transpose(1, 2, 0), dtype=np.uint8)
        codes = rle.encode(stacked)
        columns["segmentation"] = [{**code, "counts": code["counts"].decode("ascii")} for code in codes]
    return [{"image_id": img_id, **dict(zip(columns, values))} for values in zip(*columns.values())]
