"""Bad values in configs, for every model and backbone of ours."""

from __future__ import annotations

from pathlib import Path

from faults.case import Case

CEASC = "quickstart/retinanet_ceasc_R18_synthetic.yaml"
FCOS = "quickstart/fcos_R18_synthetic.yaml"
SPARSE_FCOS = "quickstart/fcos_sparse_R18_synthetic.yaml"
DEFCN = "quickstart/defcn_R18_synthetic.yaml"
GFL = "VisDrone/gfl_R18_FPN512.yaml"
GFL_CEASC = "VisDrone/gfl_ceasc_R18_FPN512.yaml"
RETINANET = "VisDrone/retinanet_R18_FPN512.yaml"
VOVNET = "VoVNetV2/fcos_V39_FPN_3x.yaml"
DETNET = "DetNet/fcos_D59_FPN_1x.yaml"
MOGANET = "MogaNet/fcos_T_FPN_1x.yaml"


def _value(what: str, key: str, value: str, *says: str, base: str = CEASC) -> Case:
    """A value on the command line; the message names the key, or at least its last part, which no other section has."""
    named = (key.rpartition(".")[2],)
    return Case(what, key, (*named, *says), 2, (key, value), base)


def _file(what: str, where: str, text: str, *says: str) -> Case:
    """A whole config file."""

    def write(folder: Path) -> object:
        return (folder / "recipe.yaml").write_bytes(text.encode("latin-1"))

    return Case(what, where, ("recipe.yaml", *says), 2, write)


FILES = [
    _file(
        "unknown key, near another",
        "SOLVER.BASE_LRR",
        "VERSION: 2\nSOLVER: {BASE_LRR: 0.1}\n",
        "Did you mean 'SOLVER.BASE_LR'",
    ),
    _file("unknown section", "MODEL.FCOSS", "VERSION: 2\nMODEL: {FCOSS: {NUM_CLASSES: 3}}\n", "MODEL.FCOSS"),
    _file(
        "key of another section", "MODEL.NUM_CLASSES", "VERSION: 2\nMODEL: {NUM_CLASSES: 3}\n", "'MODEL.NUM_CLASSES'"
    ),
    _file("text instead of a number", "SOLVER.MAX_ITER", "VERSION: 2\nSOLVER: {MAX_ITER: many}\n", "MAX_ITER", "many"),
    _file("comma in a number", "SOLVER.BASE_LR", "VERSION: 2\nSOLVER: {BASE_LR: '0,001'}\n", "BASE_LR", "0,001"),
    _file("number instead of a section", "SOLVER", "VERSION: 2\nSOLVER: 3\n", "SOLVER"),
    _file("list instead of keys", "whole file", "- a\n- b\n", "expected keys"),
    _file("text instead of keys", "whole file", "retinanet\n", "expected keys"),
    _file("empty file", "whole file", "", "empty"),
    _file("bracket not closed", "line 2", "VERSION: 2\nSOLVER: [\n", "not a safe, well-formed YAML"),
    _file("tab as indentation", "line 3", "VERSION: 2\nSOLVER:\n\tMAX_ITER: 3\n", "not a safe, well-formed YAML"),
    _file("not UTF-8", "byte 20", "VERSION: 2\nOUTPUT_DIR: \xff\xfe\xe9\n", "not a safe, well-formed YAML"),
    _file("tag that would run Python", "OUTPUT_DIR", "OUTPUT_DIR: !!python/object/apply:os.getcwd []\n", "not a safe"),
    _file("base file that does not exist", "_BASE_", "_BASE_: nowhere.yaml\nVERSION: 2\n", "_BASE_", "nowhere.yaml"),
    _file("file that is its own base", "_BASE_", "_BASE_: recipe.yaml\nVERSION: 2\n", "_BASE_", "each other"),
    _file("base that is no name", "_BASE_", "_BASE_: [1, 2]\nVERSION: 2\n", "_BASE_"),
    _file("config of a later version", "VERSION", "VERSION: 3\n", "v3"),
]

NAMES = [
    _value("unknown model", "MODEL.META_ARCHITECTURE", "RetinaNetCEASK", "Did you mean 'RetinaNetCEASC'"),
    _value("unknown backbone", "MODEL.BACKBONE.NAME", "build_resnet_fpn_p6p8_backbone", "p6p7"),
    _value("unknown training set", "DATASETS.TRAIN", "('visdrone_trian',)", "Did you mean 'visdrone_train'"),
    _value("unknown test set", "DATASETS.TEST", "('visdrone_vall',)", "Did you mean 'visdrone_val'"),
    _value("text instead of a list of data sets", "DATASETS.TRAIN", "visdrone_train", "DATASETS.TRAIN"),
    _value("no training set", "DATASETS.TRAIN", "()", "empty"),
    _value("unknown device", "MODEL.DEVICE", "gpu", "'gpu'", "'cuda'"),
    _value("unknown optimizer", "SOLVER.OPTIMIZER", "Adamw", "Did you mean 'AdamW'"),
    _value("unknown schedule", "SOLVER.LR_SCHEDULER_NAME", "CosineLR", "'WarmupCosineLR'"),
    _value("unknown clip type", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full", "full_model, norm, value"),
    _value("unknown sampler", "DATALOADER.SAMPLER_TRAIN", "RepeatFactor", "'RepeatFactorTrainingSampler'"),
    _value("unknown order of channels", "INPUT.FORMAT", "BRG", "'BGR'"),
    _value("unknown crop", "INPUT.CROP.TYPE", "absolut", "Did you mean 'absolute'"),
    _value("unknown flip", "INPUT.RANDOM_FLIP", "both", "'horizontal'"),
    _value("unknown warm-up", "SOLVER.WARMUP_METHOD", "cosine", "'linear'"),
]

NUMBERS = [
    _value("no iterations", "SOLVER.MAX_ITER", "0", "is 0", "at least 1"),
    _value("negative iterations", "SOLVER.MAX_ITER", "-5", "is -5"),
    _value("64-bit iterations", "SOLVER.MAX_ITER", str(2**63), f"is {2**63}", "at most 2147483647"),
    _value("negative seed", "SEED", "-5", "is -5", "at least -1"),
    _value("seed of 41 bits", "SEED", str(2**40), f"is {2**40}", "at most 2147483647"),
    _value("sides of 100 000 px", "INPUT.MIN_SIZE_TRAIN", "(100000,)", "at most 20000"),
    _value("fraction of an iteration", "SOLVER.MAX_ITER", "1.5", "Type mismatch"),
    _value("no images in a batch", "SOLVER.IMS_PER_BATCH", "0", "is 0"),
    _value("learning rate zero", "SOLVER.BASE_LR", "0.0", "is 0.0", "above 0"),
    _value("learning rate not a number", "SOLVER.BASE_LR", "1e999", "is inf"),
    _value("negative weight decay", "SOLVER.WEIGHT_DECAY", "-0.1", "is -0.1"),
    _value("momentum one", "SOLVER.MOMENTUM", "1.0", "below 1"),
    _value("steps not ascending", "SOLVER.STEPS", "(300, 200)", "ascending"),
    _value("text among the steps", "SOLVER.STEPS", "('a',)", "'a'"),
    _value("checkpoint period zero", "SOLVER.CHECKPOINT_PERIOD", "0", "is 0"),
    _value("clip value zero", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0", "above 0"),
    _value("negative warm-up", "SOLVER.WARMUP_ITERS", "-1", "is -1"),
    _value("negative workers", "DATALOADER.NUM_WORKERS", "-1", "is -1"),
    _value("standard deviation zero", "MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]", "above 0"),
    _value("two means, three deviations", "MODEL.PIXEL_MEAN", "[1.0, 2.0]", "has 2 values", "MODEL.PIXEL_STD"),
    _value("no size of images", "INPUT.MIN_SIZE_TRAIN", "()", "at least 1"),
    _value("negative size of images", "INPUT.MIN_SIZE_TEST", "-800", "is -800"),
    _value("largest size zero", "INPUT.MAX_SIZE_TRAIN", "0", "is 0"),
    _value("crop of negative size", "INPUT.CROP.SIZE", "[-96, 96]", "above 0"),
    _value("crop of three sides", "INPUT.CROP.SIZE", "[96, 96, 3]", "2 values"),
    _value("crop in px, type in shares", "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "absolute"),
    _value("crop in shares, type in px", "INPUT.CROP.SIZE", "[0.5, 0.5]", "relative"),
    _value("three bounds of a range of sizes", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN"),
    _value("ignore regions with masks", "MODEL.MASK_ON", "True", "INPUT.IGNORE_REGIONS", base=RETINANET),
    _value("negative detections", "TEST.DETECTIONS_PER_IMAGE", "-2", "is -2"),
    _value("threshold of images above 1", "TEST.PICTURE_SCORE_THRESH", "1.5", "from 0 to 1"),
    _value("expected result without tolerance", "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 40.0]]", "tolerance"),
    _value("negative evaluation period", "TEST.EVAL_PERIOD", "-1", "is -1"),
    _value("decay of 1", "SOLVER.EMA.DECAY", "1.0", "below 1"),
    _value("no batches in a step", "SOLVER.ACCUMULATE_BATCHES", "0", "is 0"),
    _value("tiles that are all overlap", "TEST.TILE.OVERLAP", "1.0", "from 0 to 0.9"),
    _value("nothing merges", "TEST.TILE.MERGE_IOU", "0.0", "above 0"),
    _value("first look at an image of full size", "TEST.TILE.SELECT", "1", "is 1", "at least 2"),
    _value("score of a first look above 1", "TEST.TILE.SELECT_SCORE", "1.5", "from 0 to 1"),
    _value("tiles chosen where there are none", "TEST.TILE.SELECT", "4", "TEST.TILE.SIZE"),
    _value("everything held out", "DATASETS.HOLD_OUT", "1.0", "both excluded"),
]

RESNETS = [
    _value("depth that does not exist", "MODEL.RESNETS.DEPTH", "20", "is 20", "18, 34, 50"),
    _value("unknown feature", "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res9']", "res9"),
    _value("unknown feature of the pyramid", "MODEL.FPN.IN_FEATURES", "['res3', 'res7']", "res7"),
    _value("no features of the pyramid", "MODEL.FPN.IN_FEATURES", "[]", "is []"),
    _value("pyramid without channels", "MODEL.FPN.OUT_CHANNELS", "0", "is 0"),
    _value("pyramid of negative channels", "MODEL.FPN.OUT_CHANNELS", "-64", "is -64"),
    _value("unknown norm", "MODEL.RESNETS.NORM", "GroupNorm", "'GN'"),
    _value("unknown norm of the pyramid", "MODEL.FPN.NORM", "BM", "'BN'"),
    _value("unknown way to fuse", "MODEL.FPN.FUSE_TYPE", "max", "'sum'"),
    _value("P6 from a level that is not there", "MODEL.FPN.P6_IN_FEATURE", "p9", "'p9'"),
    _value("negative parts frozen", "MODEL.BACKBONE.FREEZE_AT", "-1", "is -1"),
    _value("deformable for 3 of 4 stages", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[True, True, True]", "4 values"),
]

ANCHORS = [
    _value("no classes", "MODEL.RETINANET.NUM_CLASSES", "0", "is 0"),
    _value("level that the pyramid has not", "MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p8']", "'p8'"),
    _value("no levels", "MODEL.RETINANET.IN_FEATURES", "[]", "is []"),
    _value("four sizes of anchors for five levels", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[64]]", "5 levels"),
    _value("anchor of negative size", "MODEL.ANCHOR_GENERATOR.SIZES", "[[-32]]", "above 0"),
    _value("anchor of ratio zero", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.0, 1.0]]", "above 0"),
    _value("two ratios for five levels", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0], [1.0]]", "5 levels"),
    _value("offset of a whole stride", "MODEL.ANCHOR_GENERATOR.OFFSET", "1.0", "below 1"),
    _value("IoU thresholds descending", "MODEL.RETINANET.IOU_THRESHOLDS", "[0.5, 0.4]", "0.5"),
    _value("IoU threshold above 1", "MODEL.RETINANET.IOU_THRESHOLDS", "[0.4, 1.5]", "1.5"),
    _value("score threshold above 1", "MODEL.RETINANET.SCORE_THRESH_TEST", "1.05", "is 1.05", "from 0 to 1"),
    _value("negative NMS threshold", "MODEL.RETINANET.NMS_THRESH_TEST", "-0.5", "is -0.5"),
    _value("no candidates", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "0", "is 0"),
    _value("prior of 1", "MODEL.RETINANET.PRIOR_PROB", "1.0", "both excluded"),
    _value("unknown box loss", "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "iou", "'giou'"),
    _value("norm beside CE-GN", "MODEL.RETINANET.NORM", "GN", "MODEL.CEASC.NORM"),
    _value("unknown norm of the towers", "MODEL.CEASC.NORM", "GN", "Known: CE-GN, LN"),
    _value("open masks that nothing teaches", "MODEL.CEASC.MASK_LOSS_WEIGHT", "0.0", "above 0, not 0.0"),
    _value("no groups", "MODEL.CEASC.NORM_GROUPS", "0", "is 0"),
    _value("temperature zero", "MODEL.CEASC.GUMBEL_TEMPERATURE", "0.0", "above 0"),
    _value("negative weight of a loss", "MODEL.CEASC.NORM_LOSS_WEIGHT", "-1.0", "is -1.0"),
    _value("unknown target of the norm loss", "MODEL.CEASC.NORM_LOSS_TARGET", "conv2d", "Known: conv", base=GFL_CEASC),
    _value("a key of CE-GN beside another norm", "MODEL.CEASC.NORM_LOSS_TARGET", "conv", "only CE-GN reads it"),
    _value("unknown target of the ratio", "MODEL.CEASC.RATIO_TARGET", "anchor", "Did you mean 'anchors'"),
    _value("unknown divisor of the losses", "MODEL.CEASC.LOSS_NORMALIZER", "global", "Known: local"),
    _value("unknown way to match", "MODEL.CEASC.LOW_QUALITY_MATCHES", "reasign", "Did you mean 'reassign'"),
    _value("unknown unit before NMS", "MODEL.CEASC.PRE_NMS_UNIT", "box", "Known: anchor"),
]

POINTS = [
    _value("unknown assigner", "MODEL.FCOS.ASSIGNER", "simota", "'simota'", "atss", base=FCOS),
    _value("no classes", "MODEL.FCOS.NUM_CLASSES", "0", "is 0", base=FCOS),
    _value(
        "two bounds for three levels, missing one",
        "MODEL.FCOS.SIZES_OF_INTEREST",
        "[32]",
        "3 pyramid levels",
        base=FCOS,
    ),
    _value("bounds descending", "MODEL.FCOS.SIZES_OF_INTEREST", "[64, 32]", "ascending", base=FCOS),
    _value("levels from coarse to fine", "MODEL.FCOS.IN_FEATURES", "['p4', 'p3', 'p2']", "finest first", base=FCOS),
    _value("level that the pyramid has not", "MODEL.FCOS.IN_FEATURES", "['p3', 'p4', 'p6']", "'p6'", base=FCOS),
    _value("negative radius", "MODEL.FCOS.CENTER_SAMPLING_RADIUS", "-1.5", "is -1.5", base=FCOS),
    _value("unknown quality", "MODEL.FCOS.BOX_QUALITY", "centreness", "centerness", base=FCOS),
    _value("unknown tower of the quality", "MODEL.FCOS.QUALITY_ON", "both", "'both'", base=FCOS),
    _value("unknown activation", "MODEL.FCOS.BOX_ACTIVATION", "gelu", "'gelu'", base=FCOS),
    _value("unknown box loss", "MODEL.FCOS.BOX_LOSS", "ciou", "'ciou'", base=FCOS),
    _value("unknown divisor", "MODEL.FCOS.LOSS_NORMALIZER_CLS", "foreground", "'foreground'", base=FCOS),
    _value("unknown ranking", "MODEL.FCOS.RANKING", "scores", "Did you mean 'score'", base=FCOS),
    _value("three extra levels", "MODEL.FCOS.TOP_LEVELS", "3", "is 3", base=FCOS),
    _value("channels that GN cannot group", "MODEL.FPN.OUT_CHANNELS", "40", "is 40", "32 groups", base=FCOS),
    _value("negative convolutions", "MODEL.FCOS.NUM_CLS_CONVS", "-1", "is -1", base=FCOS),
    _value("sparse towers with shared layers", "MODEL.FCOS.NUM_SHARE_CONVS", "1", "SPARSE", base=SPARSE_FCOS),
    _value("sparse towers with another norm", "MODEL.FCOS.NORM", "BN", "SPARSE", "'BN'", base=SPARSE_FCOS),
    _value("unknown assigner", "MODEL.DEFCN.ASSIGNER", "potto", "Did you mean 'poto'", base=DEFCN),
    _value("alpha above 1", "MODEL.DEFCN.POTO_ALPHA", "1.2", "is 1.2", base=DEFCN),
    Case(
        "five anchors for three levels",
        "MODEL.DEFCN.ANCHOR_SIZES",
        ("MODEL.DEFCN.ANCHOR_SIZES", "3 levels"),
        2,
        ("MODEL.DEFCN.ASSIGNER", "anchor"),
        DEFCN,
    ),
    _value("even kernel", "MODEL.DEFCN.FILTER.KERNEL_SIZE", "4", "KERNEL_SIZE 4", "odd", base=DEFCN),
    _value("odd number of neighbours", "MODEL.DEFCN.FILTER.TAU", "3", "TAU 3", "even", base=DEFCN),
    _value("unknown form of the loss", "MODEL.DEFCN.FILTER_FOCAL", "logit", "Did you mean 'log'", base=DEFCN),
    _value("auxiliary loss without candidates", "MODEL.DEFCN.AUX_LOSS.TOPK", "0", "is 0", base=DEFCN),
    _value("no levels", "MODEL.DEFCN.IN_FEATURES", "[]", "is []", base=DEFCN),
    _value("NMS threshold above 1", "MODEL.DEFCN.NMS_THRESH_TEST", "2.0", "is 2.0", base=DEFCN),
    _value("no bins", "MODEL.GFL.REG_MAX", "0", "is 0", base=GFL),
    _value(
        "three anchors a position", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5, 1.0, 2.0]]", "GFL has one", base=GFL
    ),
    _value("no candidates of ATSS", "MODEL.GFL.ATSS_TOPK", "0", "is 0", base=GFL),
    _value("a key that another detector reads", "MODEL.CEASC.REG_BASE", "0.5", "only RetinaNetCEASC", base=GFL_CEASC),
    _value("unknown unit before NMS", "MODEL.GFL.PRE_NMS_UNIT", "points", "'points'", base=GFL_CEASC),
    _value("groups that do not divide the channels", "MODEL.CEASC.NORM_GROUPS", "24", "24 groups", base=GFL_CEASC),
    _value("unit that FCOS does not read", "MODEL.CEASC.PRE_NMS_UNIT", "pair", "only RetinaNetCEASC", base=SPARSE_FCOS),
]

BACKBONES = [
    _value("unknown body", "MODEL.VOVNET.CONV_BODY", "V-39-ese", "V-39-eSE", base=VOVNET),
    _value(
        "unknown feature", "MODEL.VOVNET.OUT_FEATURES", "['stage3', 'stage9']", "OUT_FEATURES", "'stage9'", base=VOVNET
    ),
    _value("no features", "MODEL.VOVNET.OUT_FEATURES", "[]", "is []", base=VOVNET),
    _value("key that nothing ever used", "MODEL.VOVNET.OUT_CHANNELS", "128", "is 128", base=VOVNET),
    _value("deformable for 2 of 4 stages", "MODEL.VOVNET.STAGE_WITH_DCN", "(True, True)", "2 values", base=VOVNET),
    _value("unknown norm", "MODEL.VOVNET.NORM", "BatchNorm", "'BN'", base=VOVNET),
    _value("unknown style", "MODEL.DETNET.FPN_STYLE", "pytorch", "'pytorch'", base=DETNET),
    _value("unknown interpolation", "MODEL.DETNET.FPN_UPSAMPLE", "cubic", "'cubic'", base=DETNET),
    _value("unknown feature", "MODEL.FPN.IN_FEATURES", "['stage3', 'stage7']", "'stage7'", base=DETNET),
    _value("more parts frozen than there are", "MODEL.BACKBONE.FREEZE_AT", "9", "9 parts", base=DETNET),
    _value("unknown architecture", "MODEL.MOGANET.ARCH", "tinny", "Did you mean 'tiny'", base=MOGANET),
    _value("all paths dropped", "MODEL.MOGANET.DROP_PATH_RATE", "1.0", "below 1", base=MOGANET),
    _value("no norm", "MODEL.MOGANET.NORM", "", "is empty", base=MOGANET),
]

CONFIG_CASES = [*FILES, *NAMES, *NUMBERS, *RESNETS, *ANCHORS, *POINTS, *BACKBONES]
