"""Is NMS needed? AP of a model with and without it, and the score of the second-best box of every object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2_ext.evaluation import build_evaluator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from matplotlib.figure import Figure
from torch import nn

NO_NMS = 1.0  # an IoU above which nothing can be


@dataclass
class Duplicates:
    """What one model gives.

    Attributes:
        ap_with_nms, ap_without_nms: metrics in per cent, by name.
        best, second: per object that was found, the scores of its best and second-best box, 0 if there is no second.
    """

    ap_with_nms: dict[str, float] = field(default_factory=dict)
    ap_without_nms: dict[str, float] = field(default_factory=dict)
    best: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)


def find_duplicates(
    cfg: CfgNode, model: nn.Module, dataset: str, folder: Path, *, nms_thresh: float, min_iou: float, limit: int = 0
) -> Duplicates:
    """Evaluate a model twice, with and without NMS.

    Args:
        cfg: of the model.
        model: in evaluation mode, with an attribute ``test_nms_thresh``, which is changed.
        dataset: a registered name.
        folder: for the files of the evaluations.
        nms_thresh: IoU of class-wise NMS.
        min_iou: from which on a box of the right class belongs to an object.
        limit: evaluate the first so many images only; 0: all.
    """
    result = Duplicates()
    model.test_nms_thresh = nms_thresh
    result.ap_with_nms, _ = _evaluate(cfg, model, dataset, folder / "with_nms", min_iou, limit)
    model.test_nms_thresh = NO_NMS
    result.ap_without_nms, scores = _evaluate(cfg, model, dataset, folder / "without_nms", min_iou, limit)
    found = scores[scores[:, 0] > 0]
    result.best, result.second = found[:, 0].tolist(), found[:, 1].tolist()
    return result


@torch.no_grad()
def _evaluate(
    cfg: CfgNode, model: nn.Module, dataset: str, folder: Path, min_iou: float, limit: int
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of a model on a data set, and the two best scores of all its objects (M, 2)."""
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    evaluator = build_evaluator(cfg, dataset, str(folder))
    evaluator.reset()
    scores = [np.zeros((0, 2))]
    for number, inputs in enumerate(build_detection_test_loader(cfg, dataset)):
        if limit and number >= limit:
            break
        outputs = [{"instances": output["instances"].to("cpu")} for output in model(inputs)]
        evaluator.process(inputs, outputs)
        for item, output in zip(inputs, outputs, strict=True):
            annotations = records[item["image_id"]].get("annotations", [])
            rows = [a for a in annotations if not a.get("iscrowd", 0)]
            boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in rows]
            objects = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            classes = torch.tensor([a["category_id"] for a in rows], dtype=torch.long)
            scores.append(two_best_scores(output["instances"], objects, classes, min_iou))
    results = evaluator.evaluate()
    metrics = next(iter(results.values())) if results else {}
    return {key: value for key, value in metrics.items() if "-" not in key}, np.concatenate(scores)


def two_best_scores(found: Instances, boxes: torch.Tensor, classes: torch.Tensor, min_iou: float) -> np.ndarray:
    """Scores of the best and second-best detection of each object.

    Args:
        found: detections of one image.
        boxes: (M, 4) objects, XYXY px of the same frame.
        classes: (M,) their classes.
        min_iou: from which on a box of the right class belongs to an object.

    Returns:
        (M, 2), 0 where there is none. A detection belongs to the object that it overlaps most.
    """
    scores = np.zeros((len(boxes), 2))
    if len(boxes) == 0 or len(found) == 0:
        return scores
    iou = pairwise_iou(found.pred_boxes, Boxes(boxes))
    iou[found.pred_classes[:, None] != classes[None]] = 0
    overlap, owner = iou.max(dim=1)
    for index in range(len(boxes)):
        own = found.scores[(owner == index) & (overlap >= min_iou)].sort(descending=True).values[:2]
        scores[index, : len(own)] = own.numpy()
    return scores


def summary(results: Mapping[str, Duplicates], metric: str) -> list[dict[str, Any]]:
    """One row per model, as it is printed and written."""
    return [
        {
            "model": name,
            f"{metric}_with_nms": result.ap_with_nms.get(metric),
            f"{metric}_without_nms": result.ap_without_nms.get(metric),
            "objects_found": len(result.best),
            "mean_best_score": float(np.mean(result.best)) if result.best else None,
            "mean_second_score": float(np.mean(result.second)) if result.second else None,
            "share_with_second_above_0.3": float(np.mean(np.array(result.second) > 0.3)) if result.second else None,
            "with_nms": result.ap_with_nms,
            "without_nms": result.ap_without_nms,
        }
        for name, result in results.items()
    ]


def draw_duplicates(results: Mapping[str, Duplicates], metric: str) -> Figure:
    """Draw the metric with and without NMS, and how the second-best scores are distributed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(results))
    for shift, label, values in (
        (-0.2, "with NMS", [r.ap_with_nms.get(metric, 0.0) for r in results.values()]),
        (0.2, "without NMS", [r.ap_without_nms.get(metric, 0.0) for r in results.values()]),
    ):
        left.bar_label(left.bar(places + shift, values, width=0.38, label=label), fmt="%.1f")
    left.set_xticks(places, list(results))
    left.set_ylabel(f"{metric} (%)")
    left.margins(y=0.15)
    left.legend(loc="lower center")
    for name, result in results.items():
        scores = np.sort(result.second)
        right.plot(scores, 1 - np.arange(len(scores)) / max(len(scores), 1), label=name)
    right.set_xlabel("score of an object's second-best box, before NMS")
    right.set_ylabel("share of found objects above it")
    right.set_xlim(0, 1)
    right.set_ylim(0, 1)
    right.legend()
    return figure
