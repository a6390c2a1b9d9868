"""Conversion of configs between the versions 0, 1 and 2 of their keys."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config.config import CfgNode
from detectron2.config.defaults import _C

logger = logging.getLogger(__name__)

# {version: ((key before it, key since it), ...)}
RENAMES: dict[int, tuple[tuple[str, str], ...]] = {
    1: (("MODEL.RPN_HEAD.NAME", "MODEL.RPN.HEAD_NAME"),),
    2: (
        ("MODEL.WEIGHT", "MODEL.WEIGHTS"),
        ("MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE", "MODEL.RPN.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE", "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.COMBINE_ON", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED"),
        ("MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD", "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH"),
        ("MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT", "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD",
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        ),
        ("MODEL.ROI_HEADS.SCORE_THRESH", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        ("MODEL.ROI_HEADS.NMS", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD", "MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES", "MODEL.RETINANET.TOPK_CANDIDATES_TEST"),
        ("MODEL.RETINANET.INFERENCE_NMS_THRESHOLD", "MODEL.RETINANET.NMS_THRESH_TEST"),
        ("TEST.DETECTIONS_PER_IMG", "TEST.DETECTIONS_PER_IMAGE"),
        ("TEST.AUG_ON", "TEST.AUG.ENABLED"),
        ("TEST.AUG_MIN_SIZES", "TEST.AUG.MIN_SIZES"),
        ("TEST.AUG_MAX_SIZE", "TEST.AUG.MAX_SIZE"),
        ("TEST.AUG_FLIP", "TEST.AUG.FLIP"),
    ),
}
# Before version 2 anchors belonged to the RPN and to RetinaNet, each with its own.
ANCHOR_KEYS = {"ANCHOR_SIZES": "SIZES", "ANCHOR_ASPECT_RATIOS": "ASPECT_RATIOS"}


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """A copy of a full config with the keys of a newer version (default: the newest)."""
    target = _C.VERSION if to_version is None else to_version
    cfg = cfg.clone()
    assert target >= cfg.VERSION, f"Cannot upgrade a v{cfg.VERSION} config to v{target}."
    for version in range(cfg.VERSION + 1, target + 1):
        for old, new in RENAMES[version]:
            _put(cfg, new, _take(cfg, old))
        if version == 2:
            _join_anchors(cfg)
        cfg.VERSION = version
    return cfg


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """A copy of a full config with the keys of an older version, good for merging an old partial file into it."""
    cfg = cfg.clone()
    assert to_version <= cfg.VERSION, f"Cannot downgrade a v{cfg.VERSION} config to v{to_version}."
    for version in range(cfg.VERSION, to_version, -1):
        for old, new in reversed(RENAMES[version]):
            _put(cfg, old, _take(cfg, new))
        if version == 2:
            _split_anchors(cfg)
        cfg.VERSION = version - 1
    return cfg


def guess_version(cfg: CfgNode, filename: str) -> int:
    """Version of a partial config that does not say it: 1 if it has a key that was renamed since, else the newest."""
    is_old = "WEIGHT" in cfg.get("MODEL", {}) or "AUG_ON" in cfg.get("TEST", {})
    version = 1 if is_old else _C.VERSION
    logger.warning("Config '%s' has no VERSION. It is taken for version %d.", filename, version)
    return version


def _join_anchors(cfg: CfgNode) -> None:
    kept, dropped = ("RETINANET", "RPN") if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else ("RPN", "RETINANET")
    for old, new in ANCHOR_KEYS.items():
        _put(cfg, f"MODEL.ANCHOR_GENERATOR.{new}", _take(cfg, f"MODEL.{kept}.{old}"))
        _take(cfg, f"MODEL.{dropped}.{old}")
    _take(cfg, "MODEL.RETINANET.ANCHOR_STRIDES")


def _split_anchors(cfg: CfgNode) -> None:
    for old, new in ANCHOR_KEYS.items():
        value = _take(cfg, f"MODEL.ANCHOR_GENERATOR.{new}")
        _put(cfg, f"MODEL.RPN.{old}", value)
        _put(cfg, f"MODEL.RETINANET.{old}", value)
    _put(cfg, "MODEL.RETINANET.ANCHOR_STRIDES", [])  # existed, but no version read it


def _put(cfg: CfgNode, key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for name in path:
        cfg = cfg.setdefault(name, CfgNode())
    cfg[leaf] = value


def _take(cfg: CfgNode, key: str) -> Any:
    """Remove a key, and the nodes that become empty by it."""
    name, _, rest = key.partition(".")
    if not rest:
        return cfg.pop(name)
    value = _take(cfg[name], rest)
    if not cfg[name]:
        del cfg[name]
    return value
