"""Config keys of DeFCN (one-to-one assignment, no NMS). The defaults are the paper's POTO on COCO."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_defcn_config(cfg: CfgNode) -> None:
    """Add ``MODEL.DEFCN``."""
    cfg.MODEL.DEFCN = CfgNode()
    _C = cfg.MODEL.DEFCN
    _C.NUM_CLASSES = 80  # foreground classes, the background is not counted
    _C.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]  # pyramid levels, finest first; strides come from the backbone

    # Which location learns which object:
    # "poto"         Hungarian matching on prob^(1 - alpha) * IoU^alpha (Eq. 1-3 of the paper)
    # "poto_argmax"  the best location per object instead of the matching; losers of a collision stay background
    # "loss"         Hungarian matching that minimises the foreground loss
    # "center"       the location nearest to the center on each level whose range fits
    # "anchor"       the square anchor of highest IoU
    _C.ASSIGNER = "poto"
    _C.POTO_ALPHA = 0.8  # exponent of the IoU; the class probability gets 1 - alpha
    # Half side, in strides, of the square around a box's center that holds its candidates; 0 = the whole box.
    _C.CENTER_SAMPLING_RADIUS = 1.5
    _C.SIZES_OF_INTEREST = [64, 128, 256, 512]  # px, read by the "center" assigner
    _C.ANCHOR_SIZES = [32, 64, 128, 256, 512]  # px, one per level, read by the "anchor" assigner

    _C.NUM_CONVS = 4  # of each tower
    _C.NORM = "GN"  # of the towers
    _C.PRIOR_PROB = 0.01  # initial probability of every class
    # CEASC's sparse towers instead of the dense ones; their keys are in MODEL.CEASC.
    _C.SPARSE = False

    _C.FILTER = CfgNode()  # the filter branch and 3D max filtering (section 3.3 of the paper)
    _C.FILTER.ENABLED = False  # a branch that learns which location of an object is its one
    # False: the filter branch reads the box tower as it is, without the max over neighbors and levels and its norm,
    # which need every position. SPARSE has to go without them.
    _C.FILTER.MAX_POOLING = True
    _C.FILTER.KERNEL_SIZE = 3  # of the pooling in the plane (phi)
    _C.FILTER.TAU = 2  # how many neighboring levels are pooled, half on each side; even
    _C.FILTER.NORM = "GN"  # "" = none

    _C.FOCAL_LOSS_ALPHA = 0.25  # weight of positives; negatives have 1 - alpha
    _C.FOCAL_LOSS_GAMMA = 2.0  # exponent that plays easy examples down
    # Focal loss of a product of two probabilities: "log" keeps its gradient at extreme logits; "probability"
    # repeats the original to the bit, including its vanishing gradient.
    _C.FILTER_FOCAL = "log"
    _C.BOX_LOSS_WEIGHT = 2.0  # of 1 - GIoU, beside 1 for the class loss

    _C.AUX_LOSS = CfgNode()  # one-to-many classification loss beside the one-to-one loss (training only)
    # Speeds up the learning of the features. It wants FILTER: without that branch it asks many locations of an object
    # for the very scores that the one-to-one loss wants at one of them, and duplicates stay.
    _C.AUX_LOSS.ENABLED = False
    _C.AUX_LOSS.TOPK = 9  # candidates per level
    _C.AUX_LOSS.WEIGHT = 1.0  # beside 1 for the one-to-one class loss

    _C.SCORE_THRESH_TEST = 0.05  # on the class probability
    _C.TOPK_CANDIDATES_TEST = 1000  # per level and image
    _C.NMS_THRESH_TEST = None  # IoU of class-wise NMS; None = no NMS, as the method means it
