"""Key names of published DeFCN files. Ours are the same, except for the baselines, which are FCOS models here."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from d2_ext.checkpoint.fcos import MSRA_MEAN, check_fcos_semantics, without_pixel_keys
from d2_ext.errors import CheckpointError

from detectron2.config import CfgNode
from torch import Tensor

logger = logging.getLogger(__name__)

BUFFERS = ("anchor_generator.", "shift_generator.")  # computed, not learned
BASELINE_NAMES = {
    "head.cls_subnet.": "head.cls_tower.",
    "head.bbox_subnet.": "head.bbox_tower.",
    "head.cls_score.": "head.cls_logits.",
    "head.centerness.": "head.ctrness.",
}


def convert_defcn(state_dict: Mapping[str, Tensor], cfg: CfgNode) -> dict[str, Tensor]:
    """Take the tensors of a DeFCN file over; those of its FCOS baselines are renamed to ``d2_ext``'s FCOS.

    Args:
        state_dict: the file's tensors, with or without ``module.``.
        cfg: of the model that is to load them; its meta-architecture is ``DeFCN``, or ``FCOS`` for a baseline.

    Raises:
        CheckpointError: another number of classes, or a file with centerness or max filtering for a model without.
    """
    tensors = without_pixel_keys(state_dict, MSRA_MEAN)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(BUFFERS)}
    if cfg.MODEL.META_ARCHITECTURE == "FCOS":
        renamed = {}
        for key, value in tensors.items():
            theirs = next((start for start in BASELINE_NAMES if key.startswith(start)), "")
            renamed[BASELINE_NAMES.get(theirs, "") + key.removeprefix(theirs)] = value
        check_fcos_semantics(renamed, cfg, MSRA_MEAN)
        return renamed
    node = cfg.MODEL.DEFCN
    scores = tensors.get("head.cls_score.bias")
    if scores is not None and len(scores) != node.NUM_CLASSES:
        raise CheckpointError(
            f"The file has {len(scores)} classes, but MODEL.DEFCN.NUM_CLASSES is {node.NUM_CLASSES} (the background "
            f"is not counted). Set it to {len(scores)}."
        )
    if "head.centerness.weight" in tensors:
        raise CheckpointError(
            "The file has a centerness branch, so it is the FCOS baseline. Set MODEL.META_ARCHITECTURE to 'FCOS'."
        )
    for key, enabled, option in (
        ("head.filter.weight", node.FILTER.ENABLED, "FILTER.ENABLED"),
        ("head.max3d.conv.weight", node.FILTER.ENABLED and node.FILTER.MAX_POOLING, "FILTER.MAX_POOLING"),
        (
            "head.max3d.norm.weight",
            node.FILTER.ENABLED and node.FILTER.MAX_POOLING and bool(node.FILTER.NORM),
            "FILTER.NORM",
        ),
        ("head.scales.0.scale", node.ASSIGNER != "anchor", "ASSIGNER"),
    ):
        if (key in tensors) != enabled:
            state = "has" if key in tensors else "lacks"
            raise CheckpointError(
                f"The file {state} {key!r}, which does not fit MODEL.DEFCN.{option}. Choose the config that the file "
                "was trained with."
            )
    return tensors
