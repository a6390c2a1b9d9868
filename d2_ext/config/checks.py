"""What the values of config keys may be: ranges and lengths, checked before anything is built.

Choices of our own keys, and what depends on a built network (names of features, widths, anchors per level), are checked
where they are used. Choices of Detectron2's and other packages' keys are checked here, since their own code asserts, or
notices late.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

__all__ = ["DETECTOR_SECTIONS", "RULES", "Rule", "check_config", "check_values", "value_of"]


LARGEST = 2**31 - 1  # iterations, sizes and seeds beyond it overflow somewhere in torch or numpy
LARGEST_SIDE = 20_000  # px of an image that is resized; one such image of three channels has 1.2 GB as uint8


@dataclass(frozen=True)
class Rule:
    """A condition on one value, and the words for it in "expected ..."."""

    holds: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(low: int, high: int = LARGEST) -> Rule:
    most = f" and at most {high}"
    expected = f"a whole number of at least {low}{most}"
    return Rule(lambda v: _is_number(v) and v == int(v) and low <= v <= high, expected)


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    start = f"a number above {low:g}" if above else f"a number of at least {low:g}"
    words = start if math.isinf(high) else f"a number {'above' if above else 'from'} {low:g} to {high:g}"
    return Rule(lambda v: _is_number(v) and (v > low if above else v >= low) and v <= high, words)


def _one_of(*choices: str) -> Rule:
    return Rule(lambda v: v in choices, f"one of {', '.join(repr(c) for c in choices)}", choices)


def _each(rule: Rule, *, count: int = 0, least: int = 1, increasing: bool = False) -> Rule:
    """A list of values that all follow a rule; ``count`` 0 means any number from ``least``."""

    def holds(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or not all(rule.holds(v) for v in value):
            return False
        in_order = not increasing or all(a <= b for a, b in itertools.pairwise(value))
        return in_order and (len(value) == count if count else len(value) >= least)

    size = f"{count} values" if count else "a list" if least == 0 else f"a list of at least {least}"
    return Rule(holds, f"{size}, {'ascending, ' if increasing else ''}each {rule.expected}")


def _is_device(value: Any) -> bool:
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return True


PROBABILITY = _number(0, 1)
SHARE = Rule(lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
OPEN_SHARE = Rule(lambda v: _is_number(v) and 0 < v < 1, "a number between 0 and 1, both excluded")
POSITIVE = _number(0, above=True)
NOT_NEGATIVE = _number(0)
FINITE = Rule(_is_number, "a finite number")
COUNT = _whole(1)
NAMES = _each(Rule(lambda v: isinstance(v, str) and bool(v), "a name"))
NORM = _one_of("", "BN", "SyncBN", "FrozenBN", "FrozenStatsBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
SAMPLERS: tuple[str, ...] = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
if not getattr(detectron2, "__standin__", False):  # the stand-in has not got these
    SAMPLERS += ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")
ROW_OF_RESULT = Rule(
    lambda v: isinstance(v, (list, tuple)) and len(v) == 4 and all(_is_number(x) for x in v[2:]),
    "[task, metric, expected value, tolerance]",
)


def _detector(*extra: str) -> dict[str, Rule]:
    """Rules that the sections of all dense detectors share; ``extra`` names keys that count convolutions."""
    return {
        "NUM_CLASSES": COUNT,
        "IN_FEATURES": NAMES,
        "PRIOR_PROB": OPEN_SHARE,
        "SCORE_THRESH_TEST": PROBABILITY,
        "TOPK_CANDIDATES_TEST": COUNT,
        "NMS_THRESH_TEST": Rule(lambda v: v is None or PROBABILITY.holds(v), f"{PROBABILITY.expected}, or None"),
        "NORM": NORM,
        **dict.fromkeys(extra, _whole(0)),
    }


_FOCAL = {"FOCAL_LOSS_ALPHA": _number(-1, 1), "FOCAL_LOSS_GAMMA": NOT_NEGATIVE}

_SECTIONS: dict[str, dict[str, Rule]] = {
    "": {"SEED": _whole(-1)},
    "MODEL": {
        "DEVICE": Rule(_is_device, "a device of torch, such as 'cpu', 'cuda' or 'cuda:1'"),
        "PIXEL_MEAN": _each(FINITE),
        "PIXEL_STD": _each(POSITIVE),
        "CLASS_WEIGHTS": _each(POSITIVE, least=0),
    },
    "MODEL.BACKBONE": {"FREEZE_AT": _whole(0)},
    "MODEL.RESNETS": {
        "DEPTH": Rule(lambda v: v in (18, 34, 50, 101, 152), "18, 34, 50, 101 or 152"),
        "OUT_FEATURES": _each(_one_of("stem", "res2", "res3", "res4", "res5")),
        "NUM_GROUPS": COUNT,
        "NORM": NORM,
        "WIDTH_PER_GROUP": COUNT,
        "RES2_OUT_CHANNELS": COUNT,
        "STEM_OUT_CHANNELS": COUNT,
        "DEFORM_ON_PER_STAGE": _each(Rule(lambda v: isinstance(v, bool), "True or False"), count=4),
    },
    "MODEL.FPN": {"OUT_CHANNELS": COUNT, "NORM": NORM, "FUSE_TYPE": _one_of("sum", "avg")},
    "MODEL.ANCHOR_GENERATOR": {
        "SIZES": _each(_each(POSITIVE)),
        "ASPECT_RATIOS": _each(_each(POSITIVE)),
        "OFFSET": SHARE,
    },
    "MODEL.RETINANET": {
        **_detector("NUM_CONVS"),
        **_FOCAL,
        "IOU_THRESHOLDS": _each(PROBABILITY, increasing=True),
        "SMOOTH_L1_LOSS_BETA": NOT_NEGATIVE,
        "BBOX_REG_WEIGHTS": _each(POSITIVE, count=4),
        "BBOX_REG_LOSS_TYPE": _one_of("smooth_l1", "giou", "diou", "ciou"),
    },
    "MODEL.CEASC": {
        "NORM_GROUPS": COUNT,
        "CLS_BASE": FINITE,
        "REG_BASE": FINITE,
        "GUMBEL_TEMPERATURE": POSITIVE,
        "NORM_LOSS_WEIGHT": NOT_NEGATIVE,
        "RATIO_LOSS_WEIGHT": NOT_NEGATIVE,
        "MASK_LOSS_WEIGHT": NOT_NEGATIVE,
        "MASK_POSITIVE_WEIGHT": POSITIVE,
        "MASK_CHANNELS": _whole(0),
    },
    "MODEL.FCOS": {
        **_detector("NUM_CLS_CONVS", "NUM_BOX_CONVS", "NUM_SHARE_CONVS"),
        **_FOCAL,
        "SIZES_OF_INTEREST": _each(POSITIVE, least=0, increasing=True),
        "CENTER_SAMPLING_RADIUS": NOT_NEGATIVE,
        "ATSS_TOPK": COUNT,
        "ATSS_ANCHOR_SCALE": POSITIVE,
        "BOX_LOSS_WEIGHT": NOT_NEGATIVE,
        "MIN_CENTERNESS_SUM": POSITIVE,
    },
    "MODEL.GFL": {
        **_detector("NUM_CONVS"),
        "REG_MAX": COUNT,
        "ATSS_TOPK": COUNT,
        "QUALITY_LOSS_BETA": NOT_NEGATIVE,
        "BOX_LOSS_WEIGHT": NOT_NEGATIVE,
        "DISTRIBUTION_LOSS_WEIGHT": NOT_NEGATIVE,
    },
    "MODEL.DEFCN": {
        **_detector("NUM_CONVS"),
        **_FOCAL,
        "POTO_ALPHA": PROBABILITY,
        "CENTER_SAMPLING_RADIUS": NOT_NEGATIVE,
        "SIZES_OF_INTEREST": _each(POSITIVE, least=0, increasing=True),
        "ANCHOR_SIZES": _each(POSITIVE, least=0),
        "BOX_LOSS_WEIGHT": NOT_NEGATIVE,
        "FILTER.KERNEL_SIZE": COUNT,
        "FILTER.TAU": _whole(0),
        "FILTER.NORM": NORM,
        "AUX_LOSS.TOPK": COUNT,
        "AUX_LOSS.WEIGHT": NOT_NEGATIVE,
    },
    "MODEL.VOVNET": {"OUT_FEATURES": NAMES, "NORM": NORM, "DEFORMABLE_GROUPS": COUNT},
    "MODEL.DETNET": {"OUT_FEATURES": NAMES, "NORM": NORM},
    "MODEL.MOGANET": {
        "OUT_FEATURES": NAMES,
        "NORM": NORM,
        "DROP_PATH_RATE": SHARE,
        "SCALE_INIT": FINITE,
    },
    "INPUT": {
        "FORMAT": _one_of("BGR", "RGB", "L", "YUV-BT.601"),
        "MIN_SIZE_TRAIN": _each(_whole(0, LARGEST_SIDE)),
        "MAX_SIZE_TRAIN": COUNT,
        "MIN_SIZE_TRAIN_SAMPLING": _one_of("choice", "range"),
        "MIN_SIZE_TEST": _whole(0, LARGEST_SIDE),
        "MAX_SIZE_TEST": COUNT,
        "RANDOM_FLIP": _one_of("none", "horizontal", "vertical"),
        "CROP.TYPE": _one_of("relative", "relative_range", "absolute", "absolute_range"),
        "CROP.SIZE": _each(POSITIVE, count=2),
        "CROP.OBJECT_SHARE": SHARE,
    },
    "DATASETS": {"HOLD_OUT": OPEN_SHARE},
    "DATALOADER": {
        "NUM_WORKERS": _whole(0),
        "SAMPLER_TRAIN": _one_of(*SAMPLERS),
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": _one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
        "MAX_ITER": COUNT,
        "IMS_PER_BATCH": COUNT,
        "BASE_LR": POSITIVE,
        "MOMENTUM": SHARE,
        "WEIGHT_DECAY": NOT_NEGATIVE,
        "GAMMA": POSITIVE,
        "STEPS": _each(_whole(0), least=0, increasing=True),
        "WARMUP_FACTOR": PROBABILITY,
        "WARMUP_ITERS": _whole(0),
        "WARMUP_METHOD": _one_of("linear", "constant"),
        "CHECKPOINT_PERIOD": COUNT,
        "ACCUMULATE_BATCHES": COUNT,
        "EMA.DECAY": SHARE,
        "EMA.WARMUP_ITERS": _whole(0),
        "CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
        "CLIP_GRADIENTS.NORM_TYPE": Rule(lambda v: isinstance(v, int | float) and v > 0, "a number above 0, or inf"),
    },
    "WANDB": {
        "PROJECT": Rule(lambda v: isinstance(v, str) and bool(v), "the name of a project"),
        "MODE": _one_of("", "online", "offline"),
    },
    "TEST": {
        "DETECTIONS_PER_IMAGE": _whole(-1),
        "EVAL_PERIOD": _whole(0),
        "NUM_PICTURES": _whole(0),
        "PICTURE_SCORE_THRESH": PROBABILITY,
        "MASK_PERIOD": _whole(0),
        "EXPECTED_RESULTS": _each(ROW_OF_RESULT, least=0),
        "BEST.PATIENCE": _whole(0),
        "TILE.SIZE": _whole(0),
        "TILE.OVERLAP": _number(0, 0.9),
        "TILE.BATCH_SIZE": COUNT,
        "TILE.MERGE_IOU": _number(0, 1, above=True),
        "TILE.SELECT": Rule(lambda v: v == 0 or _whole(2).holds(v), "a whole number of at least 2, or 0"),
        "TILE.SELECT_SCORE": PROBABILITY,
    },
}

GN_GROUPS = 32  # of the norm "GN" in Detectron2
# The section of MODEL that holds a meta-architecture's own keys, its number of classes among them.
DETECTOR_SECTIONS = {
    "RetinaNet": "RETINANET",
    "IgnoreAwareRetinaNet": "RETINANET",
    "RetinaNetCEASC": "RETINANET",
    "GFL": "GFL",
    "GFLCEASC": "GFL",
    "FCOS": "FCOS",
    "DeFCN": "DEFCN",
    "GeneralizedRCNN": "ROI_HEADS",
}

READ_VIS_PERIOD = ("RetinaNet", "IgnoreAwareRetinaNet", "GeneralizedRCNN")

RULES: dict[str, Rule] = {
    f"{section}.{key}".removeprefix("."): rule for section, rules in _SECTIONS.items() for key, rule in rules.items()
}


def check_config(cfg: CfgNode) -> None:
    """Check names, every value that has a rule, and values that contradict each other.

    Raises:
        ConfigError: naming the key, its value, and what was expected or the nearest known name.
    """
    for key, registry in (("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY), ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)):
        name, known = value_of(cfg, key), [known for known, _ in registry]
        if name not in known:
            raise ConfigError(
                f"{key}: nothing is registered as {name!r}. {did_you_mean(name, known)} A module of your own that "
                "registers it is named with --import MODULE."
            )
    check_values(cfg, RULES)
    _check_run(cfg)
    _check_model(cfg)


def check_values(cfg: CfgNode, keys: Iterable[str]) -> None:
    """Check the values of some keys that have a rule.

    Raises:
        ConfigError: naming the key, its value, and what was expected.
    """
    for key in keys:
        value, rule = value_of(cfg, key), RULES[key]
        if not rule.holds(value):
            hint = f" {did_you_mean(value, rule.choices, max_listed=0)}" if isinstance(value, str) else ""
            raise ConfigError(f"{key} is {value!r}; expected {rule.expected}.{hint}".rstrip())


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key such as ``"MODEL.FCOS.NUM_CLASSES"``."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _check_run(cfg: CfgNode) -> None:
    """Values of input and training that contradict each other."""
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std):
        raise ConfigError(
            f"MODEL.PIXEL_MEAN has {len(mean)} values, but MODEL.PIXEL_STD has {len(std)}. Give one per channel "
            "in both."
        )
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE.startswith("relative") and max(crop.SIZE) > 1:
        raise ConfigError(
            f"INPUT.CROP.SIZE is {list(crop.SIZE)} with INPUT.CROP.TYPE {crop.TYPE!r}; expected shares of the "
            "image, at most 1. For px set INPUT.CROP.TYPE absolute."
        )
    if crop.ENABLED and crop.TYPE.startswith("absolute") and min(crop.SIZE) < 1:
        raise ConfigError(
            f"INPUT.CROP.SIZE is {list(crop.SIZE)} with INPUT.CROP.TYPE {crop.TYPE!r}; expected px, at least 1. "
            "For shares of the image set INPUT.CROP.TYPE relative."
        )
    if crop.OBJECT_SHARE and (not crop.ENABLED or cfg.INPUT.TILES.ENABLED):
        other = "INPUT.TILES.ENABLED True" if crop.ENABLED else "INPUT.CROP.ENABLED False"
        raise ConfigError(
            f"INPUT.CROP.OBJECT_SHARE is {crop.OBJECT_SHARE} with {other}, where it does nothing. It places the crop "
            "of whole images: set INPUT.CROP.ENABLED True and INPUT.TILES.ENABLED False, or the share to 0."
        )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {list(sizes)} with INPUT.MIN_SIZE_TRAIN_SAMPLING 'range'; expected its two "
            "bounds, the smaller first."
        )
    if cfg.INPUT.IGNORE_REGIONS and (cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON):
        raise ConfigError(
            "INPUT.IGNORE_REGIONS=True works for boxes only, but MODEL.MASK_ON or MODEL.KEYPOINT_ON is set. "
            "Turn off the one or the other."
        )
    # Keys of Detectron2 that nobody reads here.
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError(
            "TEST.AUG.ENABLED is True, but no detector is tested on flipped and resized copies here: it would do "
            "nothing. Set it to False; for objects that are too small for the network, TEST.TILE.SIZE cuts tiles."
        )
    own = DETECTOR_SECTIONS.get(cfg.MODEL.META_ARCHITECTURE) and cfg.MODEL.META_ARCHITECTURE not in READ_VIS_PERIOD
    if cfg.VIS_PERIOD and own:
        raise ConfigError(
            f"VIS_PERIOD is {cfg.VIS_PERIOD}, but {cfg.MODEL.META_ARCHITECTURE} draws nothing while it is trained. Set "
            "it to 0; masks of sparse heads are drawn with TEST.MASK_PERIOD, detections with TEST.NUM_PICTURES."
        )
    if cfg.TEST.VAL_LOSS and cfg.TEST.TILE.SIZE:
        raise ConfigError(
            f"TEST.VAL_LOSS looks at whole images, but TEST.TILE.SIZE {cfg.TEST.TILE.SIZE} tests on tiles. Turn off "
            "the one or the other."
        )
    if cfg.TEST.TILE.SELECT and not cfg.TEST.TILE.SIZE:
        raise ConfigError(
            f"TEST.TILE.SELECT is {cfg.TEST.TILE.SELECT} with TEST.TILE.SIZE 0, where there are no tiles to choose "
            "from. Give TEST.TILE.SIZE the side of a tile in px, or set TEST.TILE.SELECT to 0."
        )
    if cfg.TEST.BEST.METRIC.startswith("val_loss/") and not cfg.TEST.VAL_LOSS:
        raise ConfigError(f"TEST.BEST.METRIC is {cfg.TEST.BEST.METRIC!r}, which is there with TEST.VAL_LOSS True only.")
    if cfg.TEST.BEST.PATIENCE and not cfg.TEST.EVAL_PERIOD:
        raise ConfigError(
            f"TEST.BEST.PATIENCE {cfg.TEST.BEST.PATIENCE} stops after that many evaluations without a better one, but "
            "there is none before the end: TEST.EVAL_PERIOD is 0. Give it a number of iterations."
        )


def _check_model(cfg: CfgNode) -> None:
    """Values below MODEL that contradict each other, or do nothing."""
    detector, backbone, fpn = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN
    section = DETECTOR_SECTIONS.get(detector)
    keys = cfg.MODEL.get(section, CfgNode())

    if cfg.MODEL.CLASS_WEIGHTS and detector in ("RetinaNet", "GeneralizedRCNN"):
        other = "IgnoreAwareRetinaNet, which is the same but for that, or another" if section == "RETINANET" else "a"
        raise ConfigError(
            f"MODEL.CLASS_WEIGHTS is set, but {detector} of Detectron2 does not read it. Choose {other} detector of "
            "d2_ext as MODEL.META_ARCHITECTURE, or balance the images with DATALOADER.SAMPLER_TRAIN."
        )

    # Anchors: one list of sizes per level, or one for all; the same for ratios.
    levels = keys.IN_FEATURES if section in ("RETINANET", "GFL") else []  # the others have no anchor generator
    for name in ("SIZES", "ASPECT_RATIOS") if levels else ():
        rows: Sequence[Any] = cfg.MODEL.ANCHOR_GENERATOR[name]
        if len(rows) not in (1, len(levels)):
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.{name} has {len(rows)} lists, but the detector has {len(levels)} levels "
                f"({', '.join(levels)}). Give one list for all levels or one for each."
            )

    # The features that a pyramid reads, and its width where the towers' norm has a fixed number of groups.
    if "fpn" in backbone and not fpn.IN_FEATURES:
        raise ConfigError("MODEL.FPN.IN_FEATURES is []; expected features of the backbone, from fine to coarse.")
    if fpn.get("SEPARABLE") and not any(f"{trunk}_fpn" in backbone for trunk in ("vovnet", "moganet")):
        raise ConfigError(
            f"MODEL.FPN.SEPARABLE is True, but {backbone} does not read it. Set it to False, or choose a builder with "
            "a pyramid of VoVNet or MogaNet as MODEL.BACKBONE.NAME."
        )
    given = cfg.MODEL.RESNETS.OUT_FEATURES
    missing = [feature for feature in fpn.IN_FEATURES if feature not in given]
    if "fpn" in backbone and "resnet" in backbone and missing:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES has {missing[0]!r}, which the ResNet does not return. "
            f"{did_you_mean(str(missing[0]), given)} Name features of MODEL.RESNETS.OUT_FEATURES."
        )
    is_sparse = detector == "GFLCEASC" or keys.get("SPARSE", False)
    has_groups = detector in ("FCOS", "DeFCN", "GFL") and keys.NORM == "GN" and not is_sparse
    if "fpn" in backbone and has_groups and fpn.OUT_CHANNELS % GN_GROUPS:
        raise ConfigError(
            f"MODEL.FPN.OUT_CHANNELS is {fpn.OUT_CHANNELS}, but MODEL.{section}.NORM 'GN' splits {fpn.OUT_CHANNELS} "
            f"channels into {GN_GROUPS} groups. Choose a multiple of {GN_GROUPS}, or another norm."
        )
