"""Every config key with its default.

A value's type counts: a file or a command line may replace a list by a tuple, but not a float by an int. Keys of what
the stand-in lacks (RPN, RoI heads, masks, semantic segmentation) are here all the same, since published recipes and
dumped configs name them.
"""

from __future__ import annotations

from detectron2.config.config import CfgNode

_ONES = (1.0, 1.0, 1.0, 1.0)

# fmt: off
_DENSE = {
    "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},  # frozen stages: 1 is the stem, 2 also res2
    "RESNETS": {
        "DEPTH": 50, "OUT_FEATURES": ["res4"], "NORM": "FrozenBN",
        "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64,  # more groups make a ResNeXt
        "STRIDE_IN_1X1": True,  # as in weights of MSRA; False for those of torchvision
        "RES2_OUT_CHANNELS": 256,  # 64 for depths 18 and 34
        "STEM_OUT_CHANNELS": 64, "RES5_DILATION": 1,
        "DEFORM_ON_PER_STAGE": [False, False, False, False],  # res2 to res5
        "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1,
    },
    "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": "", "FUSE_TYPE": "sum"},  # or "avg"
    "ANCHOR_GENERATOR": {
        "NAME": "DefaultAnchorGenerator", "ANGLES": [[-90, 0, 90]],  # degrees, of rotated anchors
        "SIZES": [[32, 64, 128, 256, 512]],  # px, square roots of areas; one list for all levels, or one per level
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],  # height / width; lists as for SIZES
        "OFFSET": 0.0,  # of an anchor's center from its cell's corner, in strides, below 1
    },
    "RETINANET": {
        "NUM_CLASSES": 80, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
        "NUM_CONVS": 4, "NORM": "",  # in each of the two towers
        "IOU_THRESHOLDS": [0.4, 0.5], "IOU_LABELS": [0, -1, 1],  # background, ignored, foreground
        "PRIOR_PROB": 0.01,  # score of every class before training
        "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5, "TOPK_CANDIDATES_TEST": 1000,  # per level
        "FOCAL_LOSS_GAMMA": 2.0, "FOCAL_LOSS_ALPHA": 0.25, "SMOOTH_L1_LOSS_BETA": 0.1,
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # or "giou", "diou", "ciou"
        "BBOX_REG_WEIGHTS": _ONES,  # of dx, dy, dw, dh
    },
}

_TWO_STAGE = {  # read by the real Detectron2 only
    "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
    "RPN": {
        "HEAD_NAME": "StandardRPNHead", "IN_FEATURES": ["res4"], "BOUNDARY_THRESH": -1, "CONV_DIMS": [-1],
        "IOU_THRESHOLDS": [0.3, 0.7], "IOU_LABELS": [0, -1, 1], "LOSS_WEIGHT": 1.0, "NMS_THRESH": 0.7,
        "BATCH_SIZE_PER_IMAGE": 256, "POSITIVE_FRACTION": 0.5, "SMOOTH_L1_BETA": 0.0,
        "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0, "BBOX_REG_WEIGHTS": _ONES,
        "PRE_NMS_TOPK_TRAIN": 12000, "PRE_NMS_TOPK_TEST": 6000,
        "POST_NMS_TOPK_TRAIN": 2000, "POST_NMS_TOPK_TEST": 1000,
    },
    "ROI_HEADS": {
        "NAME": "Res5ROIHeads", "NUM_CLASSES": 80, "IN_FEATURES": ["res4"], "PROPOSAL_APPEND_GT": True,
        "IOU_THRESHOLDS": [0.5], "IOU_LABELS": [0, 1], "BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25,
        "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5,
    },
    "ROI_BOX_HEAD": {
        "NAME": "", "NUM_FC": 0, "FC_DIM": 1024, "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "",
        "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2", "SMOOTH_L1_BETA": 0.0,
        "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0, "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
        "CLS_AGNOSTIC_BBOX_REG": False, "TRAIN_ON_PRED_BOXES": False, "USE_SIGMOID_CE": False,
        "USE_FED_LOSS": False, "FED_LOSS_FREQ_WEIGHT_POWER": 0.5, "FED_LOSS_NUM_CLASSES": 50,
    },
    "ROI_BOX_CASCADE_HEAD": {
        "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        "IOUS": (0.5, 0.6, 0.7),
    },
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "CLS_AGNOSTIC_MASK": False,
        "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2",
    },
    "ROI_KEYPOINT_HEAD": {
        "NAME": "KRCNNConvDeconvUpsampleHead", "CONV_DIMS": (512,) * 8, "NUM_KEYPOINTS": 17, "LOSS_WEIGHT": 1.0,
        "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2",
        "MIN_KEYPOINTS_PER_IMAGE": 1, "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead", "IN_FEATURES": ["p2", "p3", "p4", "p5"], "IGNORE_VALUE": 255, "NUM_CLASSES": 54,
        "CONVS_DIM": 128, "COMMON_STRIDE": 4, "NORM": "GN", "LOSS_WEIGHT": 1.0,
    },
    "PANOPTIC_FPN": {
        "INSTANCE_LOSS_WEIGHT": 1.0,
        "COMBINE": {"ENABLED": True, "OVERLAP_THRESH": 0.5,
                    "STUFF_AREA_LIMIT": 4096, "INSTANCES_CONFIDENCE_THRESH": 0.5},
    },
}

_C = CfgNode({
    "VERSION": 2,  # of the keys' names
    "OUTPUT_DIR": "./output", "CUDNN_BENCHMARK": False, "VIS_PERIOD": 0,
    "SEED": -1,  # negative: another one in each run, but the same order of images
    "FLOAT32_PRECISION": "",  # of torch.set_float32_matmul_precision
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN", "DEVICE": "cuda", "WEIGHTS": "",
        "PIXEL_MEAN": [103.53, 116.28, 123.675],  # per channel of INPUT.FORMAT, 0 to 255
        "PIXEL_STD": [1.0, 1.0, 1.0],  # as for weights of MSRA, whose first convolution holds the division
        "LOAD_PROPOSALS": False, "MASK_ON": False, "KEYPOINT_ON": False,
        **_DENSE, **_TWO_STAGE,
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,), "MIN_SIZE_TRAIN_SAMPLING": "choice",  # px of the shorter side; or a "range" of two
        "MAX_SIZE_TRAIN": 1333,  # px of the longer side
        "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333,  # 0: do not resize
        "RANDOM_FLIP": "horizontal",  # or "vertical", "none"
        # When training, before resizing; or "relative", "absolute" (px), "absolute_range". Height, width.
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
        "FORMAT": "BGR", "MASK_FORMAT": "polygon",  # or "bitmask"
    },
    "DATASETS": {
        "TRAIN": (), "TEST": (), "PROPOSAL_FILES_TRAIN": (), "PROPOSAL_FILES_TEST": (),
        "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000, "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,  # per GPU
        "ASPECT_RATIO_GROUPING": True,  # batches of landscape or of portrait images
        "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0, "REPEAT_SQRT": True,  # share of images below which a class is repeated
        "FILTER_EMPTY_ANNOTATIONS": True,  # do not train on images without objects
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # or "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
        "MAX_ITER": 40000, "CHECKPOINT_PERIOD": 5000,
        "IMS_PER_BATCH": 16,  # of all GPUs together
        "BASE_LR": 0.001, "BASE_LR_END": 0.0,  # of the cosine
        "STEPS": (30000,), "GAMMA": 0.1, "NUM_DECAYS": 3,  # iterations, and the factor at each
        "WARMUP_ITERS": 1000, "WARMUP_FACTOR": 0.001, "WARMUP_METHOD": "linear",  # or "constant"
        "RESCALE_INTERVAL": False,
        "MOMENTUM": 0.9, "NESTEROV": False, "WEIGHT_DECAY": 0.0001, "WEIGHT_DECAY_NORM": 0.0,
        "BIAS_LR_FACTOR": 1.0, "WEIGHT_DECAY_BIAS": None,  # None: as weights
        "REFERENCE_WORLD_SIZE": 0,  # GPUs that batch size, rate and lengths are meant for; 0: as many as there are
        # By "value" or "norm", of each parameter by itself.
        "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0},
        "AMP": {"ENABLED": False},  # mixed precision
    },
    "TEST": {
        "EVAL_PERIOD": 0,  # iterations; 0: only at the end
        "EXPECTED_RESULTS": [],  # rows of task, metric, value, tolerance
        "DETECTIONS_PER_IMAGE": 100, "KEYPOINT_OKS_SIGMAS": [],
        "AUG": {"ENABLED": False, "MIN_SIZES": tuple(range(400, 1201, 100)), "MAX_SIZE": 4000, "FLIP": True},
        "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},  # statistics of batch norm anew before evaluation
    },
    "GLOBAL": {"HACK": 1.0},
})
# fmt: on
