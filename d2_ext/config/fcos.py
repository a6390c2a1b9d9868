"""Config keys of FCOS.

The defaults are AdelaiDet's ``R_50_1x``: the paper's detector with its four improvements.
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_fcos_config(cfg: CfgNode) -> None:
    """Add ``MODEL.FCOS``."""
    cfg.MODEL.FCOS = CfgNode()
    _C = cfg.MODEL.FCOS
    _C.NUM_CLASSES = 80  # foreground classes, the background is not counted
    _C.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]  # pyramid levels, finest first; strides come from the backbone
    # The older name of MODEL.FPN.TOP_LEVELS, which counts where it is set.
    _C.TOP_LEVELS = None

    # Assignment: which locations are positive.

    _C.ASSIGNER = "fcos"  # "fcos" (ranges of size) or "atss" (adaptive threshold on square anchors)
    # Bounds in px between the levels' ranges of max(l, t, r, b); one number less than there are levels.
    _C.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Closed ranges (original, AdelaiDet) let a distance equal to a bound belong to both levels, open ones
    # (Detectron2's own FCOS) to neither.
    _C.RANGES_CLOSED = True
    # Half side of the square around a box's center whose locations may be positive, in strides; 0 = whole box.
    _C.CENTER_SAMPLING_RADIUS = 1.5
    # Boxes hold their last pixel (x2 = x + w - 1, the original's convention): +1 on each side in the areas that
    # decide between overlapping boxes, and on the right and bottom of detections.
    _C.INCLUSIVE_PIXELS = False
    _C.ATSS_TOPK = 9  # candidates per level of the "atss" assigner
    _C.ATSS_ANCHOR_SCALE = 8  # side of its square anchors, in strides

    # Head.

    _C.NUM_CLS_CONVS = 4  # convolutions of the class tower
    _C.NUM_BOX_CONVS = 4  # convolutions of the box tower
    _C.NUM_SHARE_CONVS = 0  # convolutions before the two towers part
    _C.NORM = "GN"  # of the towers; batch norms get one instance per level
    _C.USE_SCALE = True  # a learned factor per level on the raw box output
    _C.DEFORM_LAST_CONV = False  # modulated deformable last convolution in both towers
    # "relu": distances in strides; "exp": distances in px (the first version of the paper).
    _C.BOX_ACTIVATION = "relu"
    _C.BOX_QUALITY = "centerness"  # what the quality branch learns: "centerness", "iou", or "none" (no branch)
    _C.QUALITY_ON = "box"  # the tower that the quality branch reads: "box" or "cls"
    _C.PRIOR_PROB = 0.01  # initial score of every class
    # CEASC's sparse towers instead of the dense ones; their keys are in MODEL.CEASC.
    _C.SPARSE = False

    # Losses.

    _C.FOCAL_LOSS_ALPHA = 0.25  # weight of positives; negatives have 1 - alpha
    _C.FOCAL_LOSS_GAMMA = 2.0  # exponent that plays easy examples down
    _C.BOX_LOSS = "giou"  # "giou": 1 - GIoU, "linear_iou": 1 - IoU, "iou": -ln IoU
    # (I + 1) / (U + 1) in the unit of the head's output (strides with "relu"), as the original and AdelaiDet do.
    _C.IOU_SMOOTHING = True
    _C.BOX_LOSS_WEIGHT = 1.0  # beside 1 for the class and quality losses
    # Divisor of the classification loss: "fg" positives, "moving_fg" their moving average (kept in the
    # checkpoint), "all" the number of locations. Each is averaged over the workers.
    _C.LOSS_NORMALIZER_CLS = "fg"
    _C.MIN_CENTERNESS_SUM = 1e-6  # lower bound of the box loss's divisor where centerness weights that loss

    # Inference.

    _C.SCORE_THRESH_TEST = 0.05  # on the class probability alone ...
    _C.THRESH_WITH_QUALITY = False  # ... or on class probability x quality
    _C.RANKING = "score"  # of candidates within a level: "score" (with quality) or "cls" (cvpods: without)
    _C.TOPK_CANDIDATES_TEST = 1000  # per level and image
    _C.NMS_THRESH_TEST = 0.6  # IoU; None = no NMS
