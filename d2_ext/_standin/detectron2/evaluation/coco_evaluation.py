"""COCO's metrics of boxes, masks and keypoints, computed by pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2._missing import refuse
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from .evaluator import DatasetEvaluator

__all__ = ["COCOEvaluator", "COCOevalMaxDets", "instances_to_coco_json"]

__getattr__ = refuse(__name__, ["COCOeval_opt", "_evaluate_box_proposals"])

_METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}


class COCOEvaluator(DatasetEvaluator):
    """Average precision of detections, in 0..100; NaN where it is not defined.

    Args:
        dataset_name: registered; with ``json_file`` in its metadata, or with records that can be converted.
        tasks: of ``"bbox"``, ``"segm"``, ``"keypoints"``; by default those that the predictions have data for. A
            config in this place is accepted as in earlier versions.
        distributed: collect the predictions of all processes in the first.
        output_dir: where to write ``instances_predictions.pth`` and ``coco_instances_results.json``; None for nowhere.
        max_dets_per_image: how many detections of a picture count, those of highest score; 100 by default.
        use_fast_impl: accepted; the fast implementation is a compiled extension, so pycocotools does the work.
        kpt_oks_sigmas: tolerances of the keypoints, COCO's by default.
        allow_cached_coco: re-use an annotation file converted earlier into ``output_dir``.

    Raises:
        ValueError: the data set must be converted, but there is no ``output_dir`` for the file.
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
        self._logger = logging.getLogger(__name__)
        self._distributed = distributed
        self._output_dir = output_dir
        if use_fast_impl:
            self._logger.info("Fast COCO eval is not built. Falling back to official COCO eval.")
        self._use_fast_impl = False
        self._max_dets_per_image = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        if isinstance(tasks, CfgNode):
            self._logger.warning("COCOEvaluator: give explicit arguments instead of a config")
            kpt_oks_sigmas = kpt_oks_sigmas or tasks.TEST.KEYPOINT_OKS_SIGMAS
            tasks = None
        self._tasks = tasks
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")

        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            self._metadata.json_file = self._convert(dataset_name, allow_cached_coco)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(os.fspath(self._metadata.json_file)))
        # Files of test sets have no annotations: predictions are only written.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def _convert(self, dataset_name: str, allow_cached: bool) -> str:
        """Write the data set as a file of COCO's format and return its path."""
        if self._output_dir is None:
            raise ValueError(
                f"data set '{dataset_name}' has no annotation file in COCO's format; give COCOEvaluator an output_dir "
                "to which it can be converted"
            )
        self._logger.info("Trying to convert '%s' to COCO format ...", dataset_name)
        path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)
        return path

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take one batch.

        Args:
            inputs: with ``image_id``.
            outputs: with ``instances``: ``pred_boxes`` XYXY px of the picture, ``scores``, ``pred_classes``, and
                ``pred_masks``, ``pred_keypoints`` if there are any.
        """
        for record, output in zip(inputs, outputs):
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                found = instances_to_coco_json(instances, record["image_id"])
                self._predictions.append({"image_id": record["image_id"], "instances": found})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Write the predictions and compute the metrics.

        Args:
            img_ids: pictures that count; all by default.

        Returns:
            ``{task: {metric: value}}``; {} in processes other than the first, and without any prediction.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = [*itertools.chain(*comm.gather(self._predictions, dst=0))]
            if not comm.is_main_process():
                return {}
        if not predictions:
            self._logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return {}
        self._save_raw(predictions)
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._eval_predictions(predictions, img_ids=img_ids)
        return copy.deepcopy(self._results)

    def _save_raw(self, predictions: Sequence[dict[str, Any]]) -> None:
        """Keep the predictions in the output folder, if there is one."""
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as stream:
                torch.save(predictions, stream)

    def _tasks_from_predictions(self, predictions: Sequence[dict[str, Any]]) -> list[str]:
        """Tasks for which results in COCO's format have data."""
        keys = set().union(*predictions)
        return sorted({"bbox"} | ({"segm"} if "segmentation" in keys else set()) | ({"keypoints"} & keys))

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Fill ``self._results`` with the metrics of each task."""
        self._logger.info("Preparing results for COCO format ...")
        # Copies: the predictions keep their classes, so that evaluate() may be called again.
        results = [{**found} for prediction in predictions for found in prediction["instances"]]
        tasks = self._tasks or self._tasks_from_predictions(results)
        if hasattr(self._metadata, "thing_dataset_id_to_contiguous_id"):
            self._restore_category_ids(results)
        self._save_results(results)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        self._logger.info("Evaluating predictions with official COCO API...")
        for task in sorted(tasks):
            assert task in _METRICS, f"unknown task {task!r}; there are {', '.join(_METRICS)}"
            coco_eval = None  # pycocotools cannot take an empty list of results
            if results:
                coco_eval = _evaluate_predictions_on_coco(
                    self._coco_api,
                    results,
                    task,
                    kpt_oks_sigmas=self._kpt_oks_sigmas,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                )
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(coco_eval, task, class_names=names)

    def _save_results(self, results: Sequence[dict[str, Any]]) -> None:
        """Write the results in COCO's format to the output folder, if there is one."""
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as stream:
                stream.write(json.dumps(results))

    def _restore_category_ids(self, results: Sequence[dict[str, Any]]) -> None:
        """Replace classes 0..K-1 by the data set's category ids, in place."""
        original = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        assert sorted(original) == [*range(len(original))], f"contiguous ids must be 0..K-1, got {sorted(original)}"
        for result in results:
            category = result["category_id"]
            assert category in original, f"predicted class {category}, but the data set has {len(original)} classes"
            result["category_id"] = original[category]

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Read the metrics off a summarised evaluation, and log them.

        Args:
            coco_eval: None if there were no predictions.
            iou_type: the task.
            class_names: with two or more, the result has ``AP-<name>`` for each.

        Returns:
            Metric to value in 0..100 or NaN.
        """
        metrics = _METRICS[iou_type]
        if coco_eval is None:
            self._logger.warning("No predictions from the model!")
            return {metric: float("nan") for metric in metrics}
        values = {m: float(s * 100) if s >= 0 else float("nan") for m, s in zip(metrics, coco_eval.stats)}
        self._logger.info(f"Evaluation results for {iou_type}: \n" + create_small_table(values))
        if any(math.isnan(value) for value in values.values()):
            self._logger.info("Some metrics cannot be computed and is shown as NaN.")
        if class_names is None or len(class_names) <= 1:
            return values
        per_class = _ap_per_class(coco_eval, class_names)
        self._logger.info(f"Per-category {iou_type} AP: \n" + _class_table(per_class))
        return {**values, **{f"AP-{name}": ap for name, ap in per_class}}


def _ap_per_class(coco_eval: COCOeval, class_names: Sequence[str]) -> list[tuple[str, float]]:
    """AP in 0..100 of each class, over all sizes and with the largest number of detections; NaN if it has no object."""
    precision = coco_eval.eval["precision"][:, :, :, 0, -1]  # (IoU thresholds, recall points, classes)
    assert precision.shape[2] == len(class_names), f"{precision.shape[2]} classes evaluated, {len(class_names)} names"
    table = []
    for index, name in enumerate(class_names):
        valid = precision[:, :, index][precision[:, :, index] > -1]
        table.append((name, float(np.mean(valid) * 100) if valid.size else float("nan")))
    return table


def _class_table(per_class: Sequence[tuple[str, float]]) -> str:
    """Names and AP, up to three pairs in a row."""
    cells = [*itertools.chain(*per_class)]
    columns = min(6, len(cells))
    return tabulate(
        itertools.zip_longest(*(cells[start::columns] for start in range(columns))),
        headers=["category", "AP"] * (columns // 2),
        tablefmt="pipe",
        floatfmt=".3f",
        numalign="left",
    )


def instances_to_coco_json(instances: Instances, img_id: Any) -> list[dict[str, Any]]:
    """Convert detections of one picture into COCO's format of results.

    Args:
        instances: on the CPU; see :meth:`COCOEvaluator.process`.
        img_id: the picture's id.

    Returns:
        For each detection ``image_id``, ``category_id`` (the class as it is), ``bbox`` XYWH px, not rounded, ``score``,
        and, if present, ``segmentation`` (RLE) and ``keypoints`` (pixel indices, i.e. minus 0.5).
    """
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    rows = zip(instances.pred_classes.tolist(), boxes, instances.scores.tolist())
    results = [{"image_id": img_id, "category_id": c, "bbox": box, "score": score} for c, box, score in rows]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks):
            result["segmentation"] = _encode_mask(mask)
    if instances.has("pred_keypoints"):
        shift = instances.pred_keypoints.new_tensor([0.5, 0.5, 0.0])
        for result, keypoints in zip(results, instances.pred_keypoints - shift):
            result["keypoints"] = keypoints.flatten().tolist()
    return results


def _encode_mask(mask: Any) -> dict[str, Any]:
    """RLE of a (H, W) mask that json can write."""
    rle = mask_util.encode(np.asfortranarray(np.asarray(mask), dtype="uint8"))
    return {**rle, "counts": rle["counts"].decode("ascii")}


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: list[dict[str, Any]],
    iou_type: str,
    kpt_oks_sigmas: Sequence[float] | None = None,
    cocoeval_fn: Callable[..., COCOeval] = COCOeval,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: Sequence[int] | None = None,
) -> COCOeval:
    """Evaluate one task.

    Args:
        coco_gt: the annotations.
        coco_results: detections in COCO's format, at least one.
        iou_type: ``"bbox"``, ``"segm"`` or ``"keypoints"``.
        kpt_oks_sigmas: see :class:`COCOEvaluator`.
        cocoeval_fn: class of the evaluation.
        img_ids: pictures that count; all by default.
        max_dets_per_image: at least three limits, of which the third is that of the AP; (1, 10, 100) by default.

    Returns:
        The evaluation with ``eval`` and ``stats`` filled.
    """
    assert len(coco_results) > 0, "pycocotools cannot evaluate an empty list of results"
    limits = [1, 10, 100] if max_dets_per_image is None else [*max_dets_per_image]
    assert len(limits) >= 3, f"max_dets_per_image must have three numbers or more, got {limits}"
    if iou_type == "segm":
        # With a box present, pycocotools takes the box's area for the size of the object.
        coco_results = [{key: value for key, value in result.items() if key != "bbox"} for result in coco_results]
    evaluation_class = cocoeval_fn if limits[2] == 100 else COCOevalMaxDets
    coco_eval = evaluation_class(coco_gt, coco_gt.loadRes(coco_results), iou_type)
    if img_ids is not None:
        coco_eval.params.imgIds = img_ids
    if iou_type == "keypoints":
        _set_keypoint_sigmas(coco_eval, coco_gt, coco_results, kpt_oks_sigmas)
    else:
        coco_eval.params.maxDets = limits
    for stage in (coco_eval.evaluate, coco_eval.accumulate, coco_eval.summarize):
        stage()
    return coco_eval


def _set_keypoint_sigmas(
    coco_eval: COCOeval, coco_gt: COCO, coco_results: Sequence[dict[str, Any]], sigmas: Sequence[float] | None
) -> None:
    params = coco_eval.params
    params.kpt_oks_sigmas = np.array(sigmas) if sigmas else params.kpt_oks_sigmas
    some_annotation = next(iter(coco_gt.anns.values()))
    predicted, annotated = (len(entry["keypoints"]) // 3 for entry in (coco_results[0], some_annotation))
    expected = len(params.kpt_oks_sigmas)
    assert predicted == annotated == expected, (
        f"{predicted} keypoints are predicted, {annotated} annotated, and TEST.KEYPOINT_OKS_SIGMAS has {expected}"
    )


class COCOevalMaxDets(COCOeval):
    """COCO's evaluation with a limit on the detections of a picture other than 100.

    The summary of pycocotools has the limit 100 written into it; without a result for that limit it gives -1.
    """

    def summarize(self) -> None:
        """Fill ``stats`` in pycocotools' order, and print them."""
        if not self.eval:
            raise RuntimeError("call accumulate() before summarize()")
        iou_type = self.params.iouType
        if iou_type == "keypoints":
            limit, sizes, recall_limits = 20, ("medium", "large"), ()
            recall_thresholds: tuple[float, ...] = (0.5, 0.75)
        else:
            *recall_limits, limit = self.params.maxDets[:3]
            sizes, recall_thresholds = ("small", "medium", "large"), ()
        rows = [("precision", None, "all", limit), ("precision", 0.5, "all", limit), ("precision", 0.75, "all", limit)]
        rows += [("precision", None, size, limit) for size in sizes]
        rows += [("recall", None, "all", n) for n in (*recall_limits, limit)]
        rows += [("recall", threshold, "all", limit) for threshold in recall_thresholds]
        rows += [("recall", None, size, limit) for size in sizes]
        self.stats = np.array([self._mean_and_print(*row) for row in rows])

    def _mean_and_print(self, what: str, iou: float | None, size: str, limit: int) -> float:
        """Mean over the valid entries of a table of ``eval``, -1 if there are none."""
        table = self.eval[what]  # axes: IoU, [recall,] class, size, limit
        if iou is not None:
            table = table[np.isclose(self.params.iouThrs, iou)]
        table = table[..., self.params.areaRngLbl.index(size), list(self.params.maxDets).index(limit)]
        valid = table[table > -1]
        mean = float(valid.mean()) if valid.size else -1.0
        thresholds = self.params.iouThrs
        shown_iou = f"{thresholds[0]:0.2f}:{thresholds[-1]:0.2f}" if iou is None else f"{iou:0.2f}"
        title = f"{'Average ' + what.capitalize():<18} ({'AP' if what == 'precision' else 'AR'})"
        print(f" {title} @[ IoU={shown_iou:<9} | area={size:>6s} | maxDets={limit:>3d} ] = {mean:0.3f}")  # noqa: T201
        return mean

    def __str__(self) -> str:
        self.summarize()
        return ""
