"""Config keys of input, data sets, training and evaluation."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_run_config(cfg: CfgNode) -> None:
    """Add the keys that the mapper, the trainer and the images at the end of a run read."""
    # Hand ignore regions (crowd boxes, VisDrone's classes 0 and 11) to the detector as rows of class -1, instead of
    # dropping them, which would train the objects inside them as background.
    cfg.INPUT.IGNORE_REGIONS = False
    # How many images of each test set are drawn, with their detections (and CEASC's masks), when a run ends.
    cfg.TEST.NUM_PICTURES = 0
    # Every so many iterations of the training the masks of a sparse head (CEASC) on the first test image go to
    # TensorBoard; 0: never. One pass of the backbone each.
    cfg.TEST.MASK_PERIOD = 0
    # Score from which a detection is drawn, in [0, 1].
    cfg.TEST.PICTURE_SCORE_THRESH = 0.3
    # Weights, and with them all maps, in channels-last memory format: faster convolutions on most machines, the same
    # numbers to rounding.
    cfg.MODEL.CHANNELS_LAST = False
    # "SGD" (Detectron2's) or "AdamW" (betas 0.9 and 0.999; SOLVER.MOMENTUM is not used).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # AdamW's weight decay of layer scales and other factors per channel or level; the recipes of MogaNet have none.
    cfg.SOLVER.WEIGHT_DECAY_SCALE = 0.0
