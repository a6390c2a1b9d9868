"""Settings that the sizes and numbers of a data set's objects suggest, as a recipe over another one.

The rules are told in docs/your_data.md. They look at the training images alone, and are a start, not an optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2_ext.config.checks import DETECTOR_SECTIONS
from d2_ext.data.check import SMALL, SplitReport
from d2_ext.errors import ConfigError, DatasetError

import numpy as np
import yaml
from detectron2.config import CfgNode

__all__ = ["Advice", "advise", "advice_text"]

ENOUGH = 48  # px: sides of all but a tenth of the objects, beyond which images are made smaller
FINE_SHARE = 0.25  # of the objects below 32 px, from which on the finest level has stride 4
BOUND, ANCHOR, SQUARE = 6, 3, 8  # of a level, in its strides: size of interest, smallest anchor, the one anchor of GFL
LARGEST_SIDE = 1333  # px of an image that is computed as a whole
CROP, TILE = (2, (256, 640)), (4, (512, 1024))  # sides of a large object; px, least and most
FEW_IN_A_CROP, OBJECT_SHARE = 3, 0.9  # objects in a crop at a random place; crops placed on one where there are fewer
SEEN, EPOCHS = 48_000, 12  # images seen, at least, and how often each one
STEP, BATCH = 4 * 256 * 256, (2, 8)  # px that a step computes, about, in so many images, least and most
RARE, MOST_REPEATS = 0.05, 4  # share of the images that show a class; how often these may come


@dataclass(frozen=True)
class Advice:
    """What is proposed, with the figures behind it.

    Attributes:
        finest, coarsest: levels p<n>, of stride 2^n.
        scale: by which images are made smaller, at most 1.
        short_side: of most images after that, px.
        crop: side of a training crop, px after that; 0 for whole images.
        object_share: of the crops that are placed on an object.
        tile: side of tiles in evaluation, likewise; 0 where images are computed as a whole.
        overlap: of tiles, as a share of their side.
        batch: images a step.
        iterations: of them.
        detections: of an image, at most.
        repeat_threshold: of the sampler that shows rare classes more often; 0 for the ordinary one.
        reasons: a sentence for each group of keys.
    """

    finest: int
    coarsest: int
    scale: float
    short_side: int
    crop: int
    object_share: float
    tile: int
    overlap: float
    batch: int
    iterations: int
    detections: int
    repeat_threshold: float
    reasons: dict[str, str]

    @property
    def strides(self) -> list[int]:
        """Of the levels, finest first."""
        return [2**level for level in range(self.finest, self.coarsest + 1)]


def advise(report: SplitReport) -> Advice:
    """Propose settings for a training on a split.

    Args:
        report: of the split that is trained on.

    Raises:
        DatasetError: it has no objects.
    """
    if not report.sides:
        raise DatasetError(f"The split '{report.name}' has no objects, so there is nothing to advise.")
    sides, longest = np.asarray(report.sides), np.asarray(report.longest)
    reasons: dict[str, str] = {}
    # 1. Smaller images where hardly an object is small; all that follows is in their px.
    tenth = float(np.quantile(sides, 0.1))
    scale = min(1.0, ENOUGH / max(tenth, 1.0))
    sides, longest, sizes = sides * scale, longest * scale, np.asarray(report.image_sizes) * scale
    then = ""
    if scale < 1:
        then = f"a tenth of the objects is below {tenth:.0f}x{tenth:.0f} px, so scaled by {scale:.2f}; then "
    # 2. Levels: fine enough for the small objects, coarse enough for the large ones.
    small, wide = float((sides < SMALL).mean()), float(np.quantile(longest, 0.95))
    finest = 2 if small >= FINE_SHARE else 3
    coarsest = max(finest + 2, min(7, int(math.log2(max(wide / (BOUND / 2), 1)))))
    reasons["levels"] = f"{then}{small:.0%} of the objects are smaller than 32x32 px, and 5 % longer than {wide:.0f} px"
    # 3. Crops or whole images in training, tiles or whole images in evaluation.
    largest = float(sizes.max())
    crop, tile = (min(most, max(least, 32 * round(objects * wide / 32))) for objects, (least, most) in (CROP, TILE))
    cropped = float(sizes.prod(axis=1).mean()) > STEP / 2
    seen = (np.minimum(crop, sizes) if cropped else sizes).prod(axis=1)  # px of an image that a step computes
    inside = np.asarray(report.crowding) * seen / sizes.prod(axis=1)
    few = cropped and float(inside.mean()) < FEW_IN_A_CROP
    reasons["size"] = f"{then}the largest image has {largest:.0f} px, 95 % of the objects at most {wide:.0f} px"
    # 4. How much to look at.
    images = report.images
    batch = min(BATCH[1], max(BATCH[0], int(STEP / float(seen.mean()))))
    iterations = 100 * math.ceil(max(SEEN, EPOCHS * images) / batch / 100)
    reasons["schedule"] = f"{images} images, each seen {iterations * batch / images:.0f} times"
    crowd = max(report.crowding)
    reasons["detections"] = f"the fullest image has {crowd} objects"
    # 5. Rare classes.
    shares = [count / images for count in report.images_per_class if count]
    rare = min(shares) < RARE and len(shares) > 1
    threshold = round(min(max(shares), MOST_REPEATS**2 * min(shares)), 3) if rare else 0.0
    reasons["sampler"] = f"classes are on {min(shares):.1%} to {max(shares):.0%} of the images"
    return Advice(
        finest=finest,
        coarsest=coarsest,
        scale=scale,
        short_side=round(float(np.median(sizes.min(axis=1)))),
        crop=crop if cropped else 0,
        object_share=OBJECT_SHARE if few else 0.0,
        tile=tile if largest > LARGEST_SIDE else 0,
        overlap=round(min(0.5, max(0.1, wide / tile)), 2),
        batch=batch,
        iterations=iterations,
        detections=max(100, 50 * math.ceil(1.5 * crowd / 50)),
        repeat_threshold=threshold,
        reasons=reasons,
    )


def advice_text(advice: Advice, cfg: CfgNode, base: str | Path) -> str:
    """The advice as a recipe over another one, with its reasons as comments.

    Args:
        advice: of the data.
        cfg: of the recipe ``base``: detector, backbone, batch and learning rate.
        base: path that ``_BASE_`` gets.

    Raises:
        ConfigError: the detector is none of d2_ext's dense ones or Detectron2's RetinaNet.
    """
    section, detector = DETECTOR_SECTIONS.get(cfg.MODEL.META_ARCHITECTURE), cfg.MODEL.META_ARCHITECTURE
    if section in (None, "ROI_HEADS"):
        raise ConfigError(f"--advise knows the dense detectors; MODEL.META_ARCHITECTURE of {base} is {detector}.")
    reasons = advice.reasons
    parts = [
        "# Proposed by `d2_ext check --advise`; the rules are in docs/your_data.md.\n",
        _yaml({"_BASE_": str(base)}),
        f"# Levels: {reasons['levels']}.\n",
        _yaml({"MODEL": _levels(advice, cfg, str(section))}),
        f"# Sizes: {reasons['size']}.\n",
        _yaml({"INPUT": _input(advice)}),
        f"# Schedule: {reasons['schedule']}. BASE_LR is the recipe's, scaled with the batch; try lr-find, too.\n",
        _yaml({"SOLVER": _solver(advice, cfg)}),
    ]
    if advice.repeat_threshold:
        sampler = {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD": advice.repeat_threshold}
        parts += [f"# Sampler: {reasons['sampler']}.\n", _yaml({"DATALOADER": sampler})]
    test: dict[str, Any] = {"DETECTIONS_PER_IMAGE": advice.detections, "EXPECTED_RESULTS": []}
    if advice.tile:
        test["TILE"] = {"SIZE": round(advice.tile / advice.scale), "OVERLAP": advice.overlap}
    return "".join([*parts, f"# Detections: {reasons['detections']}.\n", _yaml({"TEST": test})])


def _levels(advice: Advice, cfg: CfgNode, section: str) -> dict[str, Any]:
    strides = advice.strides
    keys: dict[str, Any] = {"IN_FEATURES": [f"p{level}" for level in range(advice.finest, advice.coarsest + 1)]}
    model: dict[str, Any] = {section: keys}
    if section in ("FCOS", "DEFCN"):
        keys["SIZES_OF_INTEREST"] = [BOUND * stride for stride in strides[:-1]]
    if section == "DEFCN" and cfg.MODEL.DEFCN.ANCHOR_SIZES:
        keys["ANCHOR_SIZES"] = [SQUARE * stride for stride in strides]
    if section == "RETINANET":
        octave = [2 ** (n / 3) for n in range(3)]
        model["ANCHOR_GENERATOR"] = {"SIZES": [[round(ANCHOR * s * x, 1) for x in octave] for s in strides]}
    if section == "GFL":
        model["ANCHOR_GENERATOR"] = {"SIZES": [[SQUARE * s] for s in strides], "ASPECT_RATIOS": [[1.0]]}
    # The pyramid below them; other backbones keep theirs, which then have to have these levels.
    name = cfg.MODEL.BACKBONE.NAME
    trunk = {"resnet": ("RESNETS", "res"), "vovnet": ("VOVNET", "stage")}
    for word, (node, prefix) in trunk.items():
        if word in name:
            last = 5 if "retinanet" in name or "p6p7" in name else min(advice.coarsest, 5)
            features = [f"{prefix}{level}" for level in range(advice.finest, last + 1)]
            model[node] = {"OUT_FEATURES": features}
            model["FPN"] = {"IN_FEATURES": features, "TOP_LEVELS": min(2, max(0, advice.coarsest - 5))}
            if cfg.MODEL.FPN.P6_IN_FEATURE.startswith("p"):
                model["FPN"]["P6_IN_FEATURE"] = f"p{last}"
    return model


def _input(advice: Advice) -> dict[str, Any]:
    # Crops and tiles are cut out of the file's image and then made smaller; 0 leaves sizes as they are.
    crop: dict[str, Any] = {"ENABLED": bool(advice.crop), "OBJECT_SHARE": advice.object_share}
    if advice.crop:
        crop |= {"TYPE": "absolute", "SIZE": [round(advice.crop / advice.scale)] * 2}
    whole = advice.short_side if advice.scale < 1 else 0
    train = min(advice.crop or whole, whole)
    test = min(advice.tile or whole, whole)
    return {"MIN_SIZE_TRAIN": [train], "MIN_SIZE_TEST": test, "CROP": crop, "TILES": {"ENABLED": False}}


def _solver(advice: Advice, cfg: CfgNode) -> dict[str, Any]:
    rate = cfg.SOLVER.BASE_LR * advice.batch / (cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE_BATCHES)
    return {
        "IMS_PER_BATCH": advice.batch,
        "ACCUMULATE_BATCHES": 1,
        "BASE_LR": float(f"{rate:.2g}"),
        "MAX_ITER": advice.iterations,
        "STEPS": [round(advice.iterations * share) for share in (2 / 3, 8 / 9)],
        "WARMUP_ITERS": min(1000, advice.iterations // 10),
    }


class _Dumper(yaml.SafeDumper):
    """Sections in blocks, lists on a line, each written out, as the recipes are written."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists twice rather than as ``&id001`` and ``*id001``."""
        return True


_Dumper.add_representer(list, lambda dumper, row: dumper.represent_sequence("tag:yaml.org,2002:seq", row, True))


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110)
