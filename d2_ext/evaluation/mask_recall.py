"""How many objects the masks of sparse towers let through, by class and size, and how much they compute for it."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from itertools import chain
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

__all__ = ["MaskRecallEvaluator"]

logger = logging.getLogger(__name__)
SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32.0**2, 96.0**2)  # px², where medium and large objects begin, as in COCO's metric


class MaskRecallEvaluator(DatasetEvaluator):
    """Mask recall: the share of objects with a positive position that both branches compute.

    A positive position of an object is one that the detector's own assigner would give it in training. An object
    without one is not seen. The masks are those of inference.

    Args:
        dataset_name: its metadata names the classes.
    """

    def __init__(self, dataset_name: str) -> None:
        self._dataset = dataset_name
        self._class_names = MetadataCatalog.get(dataset_name).thing_classes
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._objects: list[tuple[int, float, bool]] = []  # class, area in px² of the file's image, seen
        self._active: list[float] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in images with ``instances``, ``width`` and ``height``, and outputs with ``seen_objects``."""
        for item, output in zip(inputs, outputs):
            if "seen_objects" not in output:
                continue
            instances = item["instances"]
            height, width = instances.image_size
            areas = instances.gt_boxes.area() * (item["height"] * item["width"] / (height * width))
            seen = output["seen_objects"]
            self._objects += zip(instances.gt_classes.tolist(), areas.tolist(), seen.seen.tolist())
            self._active.append(seen.active)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Figures of all processes' images.

        Returns:
            On the main process ``{"masks": ...}`` in percent, NaN where there is no object: ``recall``,
            ``recall-small``, ``-medium``, ``-large``, ``recall-<class>``, and ``active``, the share of positions that
            are computed, mean of both branches. Nothing on others, or where no image had a sparse head.
        """
        objects = list(chain.from_iterable(comm.gather(self._objects)))
        active = list(chain.from_iterable(comm.gather(self._active)))
        if not comm.is_main_process() or not active:
            return OrderedDict()
        classes, areas, seen = (torch.tensor(column) for column in zip(*objects)) if objects else [torch.zeros(0)] * 3
        sizes = torch.bucketize(areas, torch.tensor(SIZE_LIMITS), right=True)
        groups = {"recall": torch.ones_like(areas, dtype=torch.bool)}
        groups |= {f"recall-{name}": sizes == number for number, name in enumerate(SIZES)}
        groups |= {f"recall-{name}": classes == number for number, name in enumerate(self._class_names)}
        counts = {name: int(group.sum()) for name, group in groups.items()}
        found = {name: int(seen[group].sum()) for name, group in groups.items()}
        figures = {name: 100 * found[name] / count if count else math.nan for name, count in counts.items()}
        figures["active"] = 100 * sum(active) / len(active)
        rows = [(name, counts[name], counts[name] - found[name], figures[name]) for name in groups]
        logger.info(
            "Masks on %s: %.2f %% of the positions are active. Objects with an active position in both branches:\n%s",
            *(self._dataset, figures["active"]),
            tabulate(rows, ["", "objects", "not seen", "%"], floatfmt=".2f"),
        )
        return OrderedDict(masks=figures)
