"""Config keys of CEASC (adaptive sparse convolution with global context), arXiv:2303.14488."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_ceasc_config(cfg: CfgNode) -> None:
    """Add ``MODEL.CEASC``, and the keys of the pyramid's top block to ``MODEL.FPN``.

    RetinaNet's own keys (``MODEL.RETINANET``) keep their meaning: classes, levels, number of tower layers, prior,
    IoU thresholds, focal loss, box loss, score and NMS thresholds. Where the paper and the authors' code differ, the
    default is what the code does.
    """
    ceasc = cfg.MODEL.CEASC = CfgNode()

    # Masked towers.
    # Norm of their layers: "CE-GN", group normalization by the statistics of the context map G (the paper), or "LN",
    # layer normalization of each position: it learns faster from random weights, needs no norm loss, and no statistics
    # of the image in inference.
    ceasc.NORM = "CE-GN"
    # Groups of CE-GN; divides the channels of the pyramid (MODEL.FPN.OUT_CHANNELS).
    ceasc.NORM_GROUPS = 32
    # Variance of the context map G with divisor n - 1 (the code) or, if False, n (ordinary group normalization).
    ceasc.UNBIASED_VARIANCE = True
    # Training computes every position, and the masks learn beside the towers, from features that they do not change.
    # False is the paper's recipe: masks with noise close positions in training, too; the detector learns more slowly.
    ceasc.OPEN_IN_TRAINING = False
    # Channels of a point-wise layer with ReLU before the mask convolutions, which both branches share; 0, the paper:
    # none. With 16 of 64 channels it costs hardly more, and masks keep more objects at a smaller active share.
    ceasc.MASK_CHANNELS = 0
    # Class logit at inactive positions: sigmoid(-8) = 0.0003. The paper does not mention it.
    ceasc.CLS_BASE = -8.0
    # Box delta at inactive positions of RetinaNetCEASC; the others have their own base and refuse another value.
    ceasc.REG_BASE = 0.0
    # Temperature tau of the Gumbel mask's gradient; it does not change how often a position is active.
    ceasc.GUMBEL_TEMPERATURE = 1.0

    # Losses: L = L_cls + L_reg + alpha * L_norm + beta * L_amm + gamma * L_mask.
    # gamma, weight of the loss that tells the masks where objects are: without it nothing asks a mask to be open at an
    # object, and on data with few, tiny objects it closes before the towers have learned. 0 is the paper's recipe.
    ceasc.MASK_LOSS_WEIGHT = 1.0
    # Weight of the positions at objects in it, beside 1 for all others together. A larger one misses fewer objects, and
    # computes more background.
    ceasc.MASK_POSITIVE_WEIGHT = 2.0
    # alpha, weight of the norm loss (distance of the sparse layer from the dense one); there is none with "LN".
    ceasc.NORM_LOSS_WEIGHT = 10.0
    # beta, weight of the loss of the adaptive multi-layer masking (distance of the active share from its target).
    ceasc.RATIO_LOSS_WEIGHT = 1.0
    # What the norm loss compares with: "group_norm", group normalization of the dense convolution (the code), or
    # "conv", the dense convolution itself (the paper's formula).
    ceasc.NORM_LOSS_TARGET = "group_norm"
    # Target P of a level's active share: "anchors", the share of its anchors that are positive (the code), or
    # "positions", the share of its positions with a positive anchor (the paper). Higher with 9 anchors a position; the
    # same with one, as GFL, FCOS and DeFCN have.
    ceasc.RATIO_TARGET = "anchors"
    # Divisor of the detection losses: "local", the positives of this worker's batch (the code), or "moving_average",
    # Detectron2's running average of them. Of RetinaNetCEASC; the others refuse another value.
    ceasc.LOSS_NORMALIZER = "local"

    # Assignment: an anchor that is a box's best one becomes positive however small its IoU. "reassign" gives it to that
    # box (the code); "keep" leaves it with the box that it overlaps most (Detectron2). Of RetinaNetCEASC; the others
    # refuse another value.
    ceasc.LOW_QUALITY_MATCHES = "reassign"

    # Candidates per level before NMS: "anchor", the MODEL.RETINANET.TOPK_CANDIDATES_TEST best anchors with all their
    # classes (the code), or "pair", that many (anchor, class) pairs (Detectron2). Of RetinaNetCEASC; GFL has its own
    # key (MODEL.GFL.PRE_NMS_UNIT), and all others refuse another value.
    ceasc.PRE_NMS_UNIT = "anchor"

    # Pyramids of dense detectors.
    # Levels that the builders `build_fcos_..._fpn_backbone` add above the FPN: 2 = P6 and P7 from the last level,
    # 1 = P6, 0 = none.
    cfg.MODEL.FPN.TOP_LEVELS = 2
    # The 3x3 convolution of each level is a depthwise one with a 1x1 behind it: an eighth of its multiply-adds. Of the
    # builders of VoVNet and MogaNet; others refuse it.
    cfg.MODEL.FPN.SEPARABLE = False
    # Of build_resnet_fpn_p6p7_backbone.
    # Where P6 is computed from: "res5" (C5, RetinaNet) or the last pyramid output, "p5" (GFL, FCOS).
    cfg.MODEL.FPN.P6_IN_FEATURE = "res5"
    # ReLU between P6 and P7. Detectron2 has it; the CEASC code, and its RetinaNet baseline, do not.
    cfg.MODEL.FPN.P7_RELU = True
