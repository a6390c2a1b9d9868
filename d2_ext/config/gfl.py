"""Config keys of GFL (Generalized Focal Loss), arXiv:2006.04388."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_gfl_config(cfg: CfgNode) -> None:
    """Add ``MODEL.GFL``.

    ``GFLCEASC`` reads it too, and ``MODEL.CEASC`` for its towers; there ``CLS_BASE`` is -5 in the authors' code. Its
    box branch has always the base 0: any constant stands for the uniform distribution, a distance of REG_MAX / 2.
    """
    gfl = cfg.MODEL.GFL = CfgNode()
    gfl.NUM_CLASSES = 80  # foreground classes, the background is not counted
    # Pyramid levels, finest first; MODEL.ANCHOR_GENERATOR gives each one anchor a position, a square of 8 strides.
    gfl.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # Head.
    gfl.NUM_CONVS = 4  # layers of each tower
    gfl.NORM = "GN"  # of the dense towers; CEASC's have their own
    gfl.PRIOR_PROB = 0.01  # initial score of every class
    gfl.REG_MAX = 16  # largest distance to a side, in strides; a side has REG_MAX + 1 bins

    # Assignment: candidates per box and level of ATSS.
    gfl.ATSS_TOPK = 9

    # Losses.
    gfl.QUALITY_LOSS_BETA = 2.0
    gfl.BOX_LOSS_WEIGHT = 2.0  # of 1 - GIoU
    gfl.DISTRIBUTION_LOSS_WEIGHT = 0.25  # of the distribution focal loss

    # Inference.
    gfl.SCORE_THRESH_TEST = 0.05
    gfl.TOPK_CANDIDATES_TEST = 1000  # per level and image, in the unit below
    # "anchor": the positions with the best class scores, with all their classes (the CEASC code, also for its
    # baseline); "pair": (position, class) pairs (mmdet's GFL).
    gfl.PRE_NMS_UNIT = "anchor"
    gfl.NMS_THRESH_TEST = 0.6  # IoU of class-wise NMS
