"""Weights of DetNet_pytorch: its ImageNet trunk, whose names are torchvision's, and its detectors.

Of a detector the trunk and the pyramid are converted; its region proposal network scores two classes per anchor and
its box head is a 14x14 convolution, for which Detectron2 has no counterpart. For its pyramid set
``MODEL.DETNET.FPN_STYLE: "detnet_pytorch"`` and ``FPN_UPSAMPLE: "bilinear_aligned"``.
"""

from __future__ import annotations

import re

from d2_ext.checkpoint.inputs import IMAGENET_RGB, warn_about_input
from d2_ext.errors import CheckpointError

from detectron2.config import CfgNode
from torch import Tensor

DETECTOR_PREFIX = "RCNN_"
_PYRAMID = {
    "RCNN_toplayer": "fpn_lateral6",
    "RCNN_latlayer1": "fpn_lateral5",
    "RCNN_latlayer2": "fpn_lateral4",
    "RCNN_latlayer3": "fpn_lateral3",
    "RCNN_latlayer4": "fpn_lateral2",
    "RCNN_smooth1": "fpn_output3",
    "RCNN_smooth2": "fpn_output2",
}
_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
_DETECTOR_STEM = {"RCNN_layer0.0": "stem.conv1", "RCNN_layer0.1": "stem.conv1.norm"}
_UNIT = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample|extra_conv)\.?(\d)\.(.+)")
_DETECTOR_UNIT = re.compile(r"RCNN_layer(\d)\.0\.(.+)")


def convert_detnet(tensors: dict[str, Tensor], cfg: CfgNode | None) -> dict[str, Tensor]:
    """Weights of DetNet_pytorch.

    Args:
        tensors: by published name.
        cfg: of the model, or None.

    Returns:
        A trunk's weights under the names of the trunk; a detector's under ``backbone.``, with the parts that have no
        counterpart under their own names.

    Raises:
        CheckpointError: if there is no DetNet in the file.
    """
    if any(key.startswith(DETECTOR_PREFIX) for key in tensors):
        renamed = {_detector_name(key): value for key, value in tensors.items()}
    else:
        renamed = {_trunk_name(key): value for key, value in tensors.items()}
    if not any("stem.conv1." in key or "stage2." in key for key in renamed):
        raise CheckpointError(
            f"No DetNet in the file: its names look like {', '.join(list(tensors)[:3])}. Expected names such as "
            "'layer4.0.extra_conv.0.weight' or 'RCNN_layer4.0.0.conv1.weight'."
        )
    warn_about_input(cfg, IMAGENET_RGB, "detnet")
    return renamed


def _trunk_name(key: str) -> str:
    for theirs, ours in _STEM.items():
        if key.startswith(f"{theirs}."):
            return ours + key.removeprefix(theirs)
    if match := _UNIT.fullmatch(key):
        layer, block, kind, index, leaf = match.groups()
        if kind in ("conv", "bn"):
            unit = f"conv{index}" + (".norm" if kind == "bn" else "")
        else:
            unit = "shortcut" + (".norm" if index == "1" else "")
        return f"stage{int(layer) + 1}.{block}.{unit}.{leaf}"
    return key


def _detector_name(key: str) -> str:
    for table, start in ((_DETECTOR_STEM, "backbone.bottom_up."), (_PYRAMID, "backbone.")):
        for theirs, ours in table.items():
            if key.startswith(f"{theirs}."):
                return start + ours + key.removeprefix(theirs)
    if match := _DETECTOR_UNIT.fullmatch(key):
        return "backbone.bottom_up." + _trunk_name(f"layer{match[1]}.{match[2]}")
    return key
