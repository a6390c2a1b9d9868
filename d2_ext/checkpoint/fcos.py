"""Key names of published FCOS files: the original's (tianzhi0549) and AdelaiDet's.

Two kinds of facts are in no tensor and have to come from the config: which activation the boxes have, and which tower
the quality branch reads. Boxes are left, top, right, bottom and class channel c is label c (no background) in all of
them, so nothing is reordered. The original's boxes hold their last pixel (x2 = x + w - 1): for its published AP set
``MODEL.FCOS.INCLUSIVE_PIXELS``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from d2_ext.errors import CheckpointError

import torch
from detectron2.config import CfgNode
from torch import Tensor

logger = logging.getLogger(__name__)

FROZEN_BN_EPS = 1e-5  # of Detectron2's FrozenBatchNorm2d; the original's has none
ORIGINAL_MEAN = (102.9801, 115.9465, 122.7717)  # BGR
MSRA_MEAN = (103.53, 116.28, 123.675)  # BGR
PIXEL_KEYS = ("pixel_mean", "pixel_std")

# Whole keys, applied in order; the first that matches renames.
ORIGINAL_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"backbone\.body\.stem\.bn1\.(.+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
        (r"backbone\.body\.stem\.conv1\.(.+)", r"backbone.bottom_up.stem.conv1.\1"),
        (r"backbone\.body\.layer(\d)\.(\d+)\.conv2\.offset\.(.+)", r"backbone.bottom_up.res{\1}.\2.conv2_offset.\3"),
        (r"backbone\.body\.layer(\d)\.(\d+)\.conv2\.conv\.(.+)", r"backbone.bottom_up.res{\1}.\2.conv2.\3"),
        (r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"backbone.bottom_up.res{\1}.\2.conv\3.norm.\4"),
        (r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.(.+)", r"backbone.bottom_up.res{\1}.\2.conv\3.\4"),
        (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"backbone.bottom_up.res{\1}.\2.shortcut.\3"),
        (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"backbone.bottom_up.res{\1}.\2.shortcut.norm.\3"),
        (r"backbone\.fpn\.fpn_inner(\d)\.(.+)", r"backbone.fpn_lateral{\1}.\2"),
        (r"backbone\.fpn\.fpn_layer(\d)\.(.+)", r"backbone.fpn_output{\1}.\2"),
        (r"backbone\.fpn\.top_blocks\.(p[67])\.(.+)", r"backbone.top_block.\1.\2"),
        (r"rpn\.head\.centerness\.(.+)", r"head.ctrness.\1"),
        (r"rpn\.head\.(.+)", r"head.\1"),
    )
)


def strip_module_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove ``module.`` from the start of all keys, as often as data parallel training put it there."""
    return {re.sub(r"^(module\.)+", "", key): value for key, value in state_dict.items()}


def convert_fcos(state_dict: Mapping[str, Tensor], cfg: CfgNode) -> dict[str, Tensor]:
    """Rename the tensors of an original FCOS file; frozen variances lose the epsilon that Detectron2 adds.

    Args:
        state_dict: the file's tensors, with or without ``module.``.
        cfg: of the model that is to load them.

    Returns:
        Tensors by the names of ``d2_ext``'s FCOS.

    Raises:
        CheckpointError: a key that no rule knows, or another number of classes.
    """
    renamed = {}
    for key, value in without_pixel_keys(state_dict, ORIGINAL_MEAN).items():
        matches = ((pattern.fullmatch(key), replacement) for pattern, replacement in ORIGINAL_RULES)
        name = next((match.expand(replacement) for match, replacement in matches if match), None)
        if name is None:
            raise CheckpointError(
                f"Key {key!r} is not one of an original FCOS file with ResNet. Expected names such as "
                "'backbone.body.layer1.0.conv1.weight' or 'rpn.head.cls_logits.weight'. Choose another source."
            )
        # Detectron2 counts stages and pyramid levels by the stride's logarithm, one more than the original.
        renamed[re.sub(r"\{(\d)\}", lambda match: str(int(match[1]) + 1), name)] = value
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        for key, value in renamed.items():
            if key.startswith("backbone.bottom_up.") and key.endswith(".running_var"):
                renamed[key] = value - FROZEN_BN_EPS
    check_fcos_semantics(renamed, cfg, ORIGINAL_MEAN)
    return renamed


def convert_adelaidet(state_dict: Mapping[str, Tensor], cfg: CfgNode) -> dict[str, Tensor]:
    """Rename the tensors of an AdelaiDet FCOS file: only the head's prefix differs.

    Args:
        state_dict: the file's tensors.
        cfg: of the model that is to load them.

    Raises:
        CheckpointError: another number of classes.
    """
    prefix = "proposal_generator.fcos_head."
    renamed = {
        f"head.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: value
        for key, value in without_pixel_keys(state_dict, MSRA_MEAN).items()
    }
    check_fcos_semantics(renamed, cfg, MSRA_MEAN)
    return renamed


def without_pixel_keys(state_dict: Mapping[str, Tensor], mean: tuple[float, ...]) -> dict[str, Tensor]:
    """Drop the normalization that old files hold, after comparing it with what it should be."""
    tensors = strip_module_prefix(state_dict)
    stored = tensors.get("pixel_mean")
    if stored is not None and not torch.allclose(stored.flatten().float().cpu(), torch.tensor(mean), atol=1e-3):
        logger.warning(
            "The file was trained with pixel_mean %s, not %s: set MODEL.PIXEL_MEAN to it.",
            stored.flatten().tolist(),
            list(mean),
        )
    return {key: value for key, value in tensors.items() if key not in PIXEL_KEYS}


def check_fcos_semantics(state_dict: Mapping[str, Tensor], cfg: CfgNode, mean: tuple[float, ...]) -> None:
    """Compare what converted tensors mean with what the config will do with them.

    Args:
        state_dict: converted.
        cfg: of the model that is to load them.
        mean: what the weights were trained with, BGR.

    Raises:
        CheckpointError: another number of classes.
    """
    logits = state_dict.get("head.cls_logits.bias")
    if logits is not None and len(logits) != cfg.MODEL.FCOS.NUM_CLASSES:
        raise CheckpointError(
            f"The file has {len(logits)} classes, but MODEL.FCOS.NUM_CLASSES is {cfg.MODEL.FCOS.NUM_CLASSES} (the "
            f"background is not counted). Set it to {len(logits)}."
        )
    if cfg.INPUT.FORMAT != "BGR":
        logger.warning("INPUT.FORMAT is %r, but the weights expect BGR images.", cfg.INPUT.FORMAT)
    if any(abs(a - b) > 1e-3 for a, b in zip(cfg.MODEL.PIXEL_MEAN, mean)):
        logger.warning("MODEL.PIXEL_MEAN is %s, but the weights expect %s.", cfg.MODEL.PIXEL_MEAN, list(mean))
    logger.info(
        "Not recoverable from the tensors, taken from the config: BOX_ACTIVATION %r, QUALITY_ON %r, BOX_QUALITY %r, "
        "INCLUSIVE_PIXELS %s.",
        cfg.MODEL.FCOS.BOX_ACTIVATION,
        cfg.MODEL.FCOS.QUALITY_ON,
        cfg.MODEL.FCOS.BOX_QUALITY,
        cfg.MODEL.FCOS.INCLUSIVE_PIXELS,
    )
