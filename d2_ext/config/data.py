"""Config keys of input, data sets and evaluation."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Add the keys of ``INPUT`` that the mapper of d2_ext reads."""
    # Hand ignore regions (crowd boxes, VisDrone's classes 0 and 11) to the detector as rows of class -1, instead of
    # dropping them, which would train the objects inside them as background.
    cfg.INPUT.IGNORE_REGIONS = False
    # How many pictures of each test set are drawn, with their detections (and CEASC's masks), when a run ends.
    cfg.TEST.NUM_PICTURES = 0
    # Score from which a detection is drawn, in [0, 1].
    cfg.TEST.PICTURE_SCORE_THRESH = 0.3
