"""Weights of the CEASC code (a fork of mmdet 2.24): RetinaNet and GFL on ResNet, dense and sparse.

Which of the four a file holds is read from its names. What changes besides names:

- RetinaNet's nine anchors: mmdet numbers them ratio by ratio, Detectron2 scale by scale, so the rows of both prediction
  layers are permuted.
- GFL's scales become vectors of one element; ``integral.project``, the constant 0, 1, ..., is dropped.

The files expect torchvision's input (see ``d2_ext.checkpoint.torchvision``), P6 from C5 in RetinaNet and from P5 in
GFL, no ReLU before P7. A class's number is that of the json the file was trained with, usually the data set's order.
"""

from __future__ import annotations

import logging
import re

from d2_ext.checkpoint.inputs import IMAGENET_RGB, warn_about_input
from d2_ext.checkpoint.torchvision import trunk_name
from d2_ext.errors import CheckpointError

import torch
from detectron2.config import CfgNode
from torch import Tensor

logger = logging.getLogger(__name__)

NUM_RATIOS = NUM_SCALES = 3  # of RetinaNet's anchors
FIRST_LEVEL = 3
INTEGRAL = "bbox_head.integral.project"
_FAMILIES = ("retina", "gfl")
_SPARSE = re.compile(r"bbox_head\.(cls|reg)_convs\.\d+\.0\..+")
_NECK = re.compile(r"neck\.(lateral_convs|fpn_convs)\.(\d)\.conv\.(.+)")
_NUM_PYRAMID_OUTPUTS = 3  # further fpn_convs are P6 and P7

# Head names, sparse and dense; {b} is cls or reg. Whole names after "bbox_head.", the first that matches renames.
_COMMON_SPARSE = (
    (r"(cls|reg)_convs\.(\d+)\.0\.conv\.(.+)", r"\1_tower.layers.\2.conv.\3"),
    (r"(cls|reg)_convs\.(\d+)\.0\.gn\.(.+)", r"\1_tower.layers.\2.norm.\3"),
    (r"(cls|reg)_pw_convs\.0\.(.+)", r"\1_tower.context_conv.\2"),
    (r"(?:retina|gfl)_(cls|reg)_mask\.0\.(.+)", r"\1_tower.mask_conv.\2"),
)
_HEAD_RULES = {
    ("retina", True): (
        *_COMMON_SPARSE,
        (r"retina_cls\.conv\.(.+)", r"cls_tower.predictors.logits.\1"),
        (r"retina_reg\.conv\.(.+)", r"reg_tower.predictors.deltas.\1"),
    ),
    ("gfl", True): (
        *_COMMON_SPARSE,
        (r"gfl_cls\.conv\.(.+)", r"cls_tower.predictors.logits.\1"),
        (r"gfl_reg\.conv\.(.+)", r"reg_tower.predictors.distributions.\1"),
        (r"(scales\.\d+\.scale)", r"\1"),
    ),
    ("retina", False): (
        (r"cls_convs\.(\d+)\.conv\.(.+)", r"cls_subnet.{\1}.\2"),
        (r"reg_convs\.(\d+)\.conv\.(.+)", r"bbox_subnet.{\1}.\2"),
        (r"retina_cls\.(weight|bias)", r"cls_score.\1"),
        (r"retina_reg\.(weight|bias)", r"bbox_pred.\1"),
    ),
    ("gfl", False): (
        (r"(cls|reg)_convs\.(\d+)\.conv\.(.+)", r"\1_tower.\2.\3"),
        (r"(cls|reg)_convs\.(\d+)\.gn\.(.+)", r"\1_tower.\2.norm.\3"),
        (r"gfl_cls\.(weight|bias)", r"cls_logits.\1"),
        (r"gfl_reg\.(weight|bias)", r"distributions.\1"),
        (r"(scales\.\d+\.scale)", r"\1"),
    ),
}


def convert_ceasc_mmdet(tensors: dict[str, Tensor], cfg: CfgNode | None) -> dict[str, Tensor]:
    """Weights of RetinaNet, RetinaNet-CEASC, GFL or GFL-CEASC.

    Args:
        tensors: by published name.
        cfg: of the model, or None; it is compared with what cannot be seen in the shapes.

    Returns:
        The weights under the detector's names; what no rule knows keeps its own.

    Raises:
        CheckpointError: if there is none of the four in the file, or other anchors than three ratios of three scales.
    """
    family = next((name for name in _FAMILIES if any(key.startswith(f"bbox_head.{name}_cls.") for key in tensors)), "")
    if not family:
        raise CheckpointError(
            f"No RetinaNet or GFL of the CEASC code in the file: its names look like {', '.join(list(tensors)[:3])}. "
            "Expected names such as 'bbox_head.retina_cls.conv.weight' or 'bbox_head.gfl_cls.weight'. The code's FSAF "
            "and Faster R-CNN are not supported."
        )
    sparse = any(_SPARSE.fullmatch(key) for key in tensors)
    if cfg is not None:
        # The config may use the weights otherwise than they were trained; the shapes do not show it.
        warn_about_input(cfg, IMAGENET_RGB, "ceasc-mmdet")
        expected = [
            ("MODEL.FPN.P6_IN_FEATURE", cfg.MODEL.FPN.P6_IN_FEATURE, {"retina": "res5", "gfl": "p5"}[family]),
            ("MODEL.FPN.P7_RELU", cfg.MODEL.FPN.P7_RELU, False),
        ]
        if sparse:
            expected.append(("MODEL.CEASC.CLS_BASE", cfg.MODEL.CEASC.CLS_BASE, {"retina": -8.0, "gfl": -5.0}[family]))
        for config_key, found, wanted in expected:
            if found != wanted:
                logger.warning(
                    "%s is %r, but these weights were trained with %r: set it so.", config_key, found, wanted
                )

    order = anchor_permutation()
    boxes = next((v for k, v in tensors.items() if re.match(r"bbox_head\.retina_reg\.(conv\.)?weight", k)), None)
    anchors = len(order) if boxes is None else boxes.shape[0] // 4
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if family == "retina" and re.match(r"bbox_head\.retina_(cls|reg)\.", key):  # (9 * D, ...), anchor by anchor
            if anchors != len(order) or value.shape[0] % anchors:
                raise CheckpointError(
                    f"{key} has {value.shape[0]} rows for {anchors} anchors a position. Expected "
                    f"RetinaNet's {len(order)} (three ratios of three scales); a head of one anchor is FSAF, which is "
                    "not supported."
                )
            value = value.unflatten(0, (anchors, -1))[order].flatten(0, 1)
        if key == INTEGRAL:  # a constant; ours is in the code
            if not torch.equal(value.float().cpu(), torch.arange(len(value), dtype=torch.float32)):
                raise CheckpointError(
                    f"{INTEGRAL} is {value.tolist()}, not 0, 1, 2, ...: the file's distributions mean something else "
                    "than those of d2_ext's GFL. Convert a file of the released code."
                )
            continue
        if re.fullmatch(r"bbox_head\.scales\.\d+\.scale", key):
            value = value.reshape(1)
        renamed[_name(key, family, sparse)] = value
    return renamed


def _name(key: str, family: str, sparse: bool) -> str:
    if key.startswith("backbone."):
        return f"backbone.bottom_up.{trunk_name(key.removeprefix('backbone.'))}"
    if match := _NECK.fullmatch(key):
        kind, index, leaf = match[1], int(match[2]), match[3]
        if kind == "lateral_convs":
            return f"backbone.fpn_lateral{FIRST_LEVEL + index}.{leaf}"
        is_output = index < _NUM_PYRAMID_OUTPUTS
        return f"backbone.{'fpn_output' if is_output else 'top_block.p'}{FIRST_LEVEL + index}.{leaf}"
    if key.startswith("bbox_head."):
        for pattern, replacement in _HEAD_RULES[family, sparse]:
            if match := re.fullmatch(pattern, key.removeprefix("bbox_head.")):
                # Detectron2's dense towers alternate convolution and ReLU: layer n is convolution 2n.
                return "head." + re.sub(r"\{(\d+)\}", lambda m: str(2 * int(m[1])), match.expand(replacement))
    return key


def anchor_permutation(num_ratios: int = NUM_RATIOS, num_scales: int = NUM_SCALES) -> list[int]:
    """Number in mmdet (ratio by ratio) of each anchor of Detectron2 (scale by scale).

    Example:
        >>> anchor_permutation()
        [0, 3, 6, 1, 4, 7, 2, 5, 8]
    """
    return [ratio * num_scales + scale for scale in range(num_scales) for ratio in range(num_ratios)]
