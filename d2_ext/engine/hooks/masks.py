"""A word when the masks of a sparse head stay closed where objects are."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.engine import HookBase

logger = logging.getLogger(__name__)

LOW_RECALL = 0.9
WINDOW = 200  # iterations: a batch of few objects says little
PREFIX = "mask_recall/"


class MaskRecallWarning(HookBase):
    """Warns once if a mask's recall is low after the warm-up; detectors without masks are passed over.

    A position that a mask closes is not computed in inference. If most positions with an object are closed, the branch
    learns next to nothing, and the losses do not show it.

    Args:
        cfg: the whole config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._first = cfg.SOLVER.WARMUP_ITERS + WINDOW
        self._weights = cfg.MODEL.CEASC.MASK_LOSS_WEIGHT, cfg.MODEL.CEASC.MASK_POSITIVE_WEIGHT
        self._warned = False

    def after_step(self) -> None:
        """Look at the recall of the last iterations, every ``WINDOW`` of them."""
        done = self.trainer.iter + 1
        if self._warned or done < self._first or done % WINDOW:
            return
        histories = self.trainer.storage.histories()
        # mask_recall/cls and mask_recall/reg; those of the levels have the level's name before the branch.
        recalls = {branch: histories.get(f"{PREFIX}{branch}") for branch in ("cls", "reg")}
        low = {branch: h.avg(WINDOW) for branch, h in recalls.items() if h is not None and h.avg(WINDOW) < LOW_RECALL}
        if not low:
            return
        named = " and ".join(f"the {branch} mask lets through {value:.0%}" for branch, value in low.items())
        advice = f"raise MODEL.CEASC.MASK_POSITIVE_WEIGHT (now {self._weights[1]:g})"
        if not self._weights[0]:
            advice = "set MODEL.CEASC.MASK_LOSS_WEIGHT to 1 (now 0, the paper's losses alone)"
        logger.warning(
            "Of the positions with an object %s (mean of the last %d iterations; expected is %d %% or more). What a "
            "mask closes is not computed in inference, so these objects will not be found. Let it learn for longer, or "
            "%s. See docs/training.md.",
            *(named, WINDOW, 100 * LOW_RECALL, advice),
        )
        self._warned = True
