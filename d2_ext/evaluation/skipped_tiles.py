"""How many tiles of large images were not computed."""

from __future__ import annotations

import logging
from collections import OrderedDict
from itertools import chain
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

__all__ = ["SkippedTilesEvaluator"]

logger = logging.getLogger(__name__)


class SkippedTilesEvaluator(DatasetEvaluator):
    """The share of tiles that ``TEST.TILE.SELECT`` skips.

    Args:
        dataset_name: for the log.
    """

    def __init__(self, dataset_name: str) -> None:
        self._dataset = dataset_name
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts: list[tuple[int, int]] = []  # tiles that were computed, and all, per image

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in outputs of a :class:`~d2_ext.inference.TiledDetector`, with ``tiles``."""
        self._counts += [output["tiles"] for output in outputs]

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """``{"tiles": {"skipped": ...}}`` in percent, of all processes' images; nothing on others than the main one."""
        counts = list(chain.from_iterable(comm.gather(self._counts)))
        if not comm.is_main_process() or not counts:
            return OrderedDict()
        computed, total = map(sum, zip(*counts))
        skipped = 100 * (total - computed) / total
        logger.info("%d of %d tiles of %s were skipped (%.1f %%).", total - computed, total, self._dataset, skipped)
        return OrderedDict(tiles={"skipped": skipped})
