"""Weights of VoVNet: those of the authors' packages, whose names are ours, and timm's.

The authors' ImageNet trunks (``vovnet39_ese_detectron2.pth``) carry the prefix ``backbone.bottom_up.`` and load into a
Detectron2 model as they are; converted, they also fit the trunk alone. They expect Detectron2's default images (BGR,
no division by the standard deviation); timm's and those of version 1 expect RGB and ImageNet's statistics.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from d2_ext.checkpoint.inputs import DETECTRON2_BGR, IMAGENET_RGB, warn_about_input
from d2_ext.errors import CheckpointError
from d2_ext.modeling.backbone.vovnet import STAGES, VOVNET_SPECS

from detectron2.config import CfgNode
from torch import Tensor

PREFIXES = ("backbone.bottom_up.", "bottom_up.", "backbone.")
_TRUNK_NAME = re.compile(r"stem\.stem_\d/.+|stage\d\.OSA\d_\d+\..+|classifier\..+")
_GATE = re.compile(r"(?:.*\.)?stage(\d)\.OSA\d_(\d+)\.ese\.fc\.weight")

_TIMM_STEM = re.compile(r"stem\.(\d)\.(.+)")
_TIMM_BLOCK = re.compile(r"stages\.(\d)\.blocks\.(\d+)\.(?:conv_mid\.(\d+)|(conv_concat|conv_reduction)|attn)\.(.+)")
_TIMM_LEAVES = {
    False: {"conv.": "conv.", "bn.": "norm."},
    True: {"conv_dw.": "dw_conv3x3.", "conv_pw.": "pw_conv1x1.", "bn.": "pw_norm."},  # of a separable unit
}


def convert_vovnet(tensors: dict[str, Tensor], cfg: CfgNode | None) -> dict[str, Tensor]:
    """Weights of the authors' packages: a trunk with or without a prefix, or a whole detector.

    Args:
        tensors: by published name.
        cfg: of the model, or None.

    Returns:
        A trunk's weights under the names of the trunk; a detector's as they are.

    Raises:
        CheckpointError: if there is no VoVNet in the file, or its gates are not those of the config.
    """
    for prefix in ("", *PREFIXES):
        stripped = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if any(_TRUNK_NAME.fullmatch(key) for key in stripped):
            break
    else:
        raise CheckpointError(
            f"No VoVNet in the file: its names look like {', '.join(list(tensors)[:3])}. Expected names such as "
            "'backbone.bottom_up.stage2.OSA2_1.concat.OSA2_1_concat/conv.weight'. For timm's use 'vovnet-timm'."
        )
    _check_gates(tensors, cfg)
    rgb = any(key.endswith("classifier.weight") for key in tensors)  # only version 1 is published with a classifier
    warn_about_input(cfg, IMAGENET_RGB if rgb else DETECTRON2_BGR, "vovnet")
    is_detector = len(stripped) < len(tensors) or not all(map(_TRUNK_NAME.fullmatch, stripped))
    return dict(tensors) if is_detector else stripped


def convert_vovnet_timm(tensors: dict[str, Tensor], cfg: CfgNode | None) -> dict[str, Tensor]:
    """Weights of timm's ``ese_vovnet*`` models. Its 39b, 57b and 99b need ``MODEL.VOVNET.ESE_LAST_ONLY``.

    Raises:
        CheckpointError: if there is no such model in the file, or its gates are not those of the config.
    """
    separable = any(".conv_dw." in key for key in tensors)
    renamed = {_name_of_timm(key, separable): value for key, value in tensors.items()}
    if not any(_TRUNK_NAME.fullmatch(key) for key in renamed):
        raise CheckpointError(
            f"No VoVNet of timm in the file: its names look like {', '.join(list(tensors)[:3])}. Expected names such "
            "as 'stages.0.blocks.0.conv_mid.0.conv.weight'. For the authors' files use 'vovnet'."
        )
    _check_gates(renamed, cfg)
    warn_about_input(cfg, IMAGENET_RGB, "vovnet-timm")
    return renamed


def _name_of_timm(key: str, separable: bool) -> str:
    if match := _TIMM_STEM.fullmatch(key):
        number = int(match[1])
        return f"stem.stem_{number + 1}/{_leaf(match[2], separable and number > 0)}"
    if match := _TIMM_BLOCK.fullmatch(key):
        stage, index, layer, kind, leaf = match.groups()
        name = f"OSA{int(stage) + 2}_{int(index) + 1}"
        start = f"stage{int(stage) + 2}.{name}"
        if layer is not None:
            return f"{start}.layers.{layer}.{name}_{layer}/{_leaf(leaf, separable)}"
        if kind == "conv_concat":
            return f"{start}.concat.{name}_concat/{_leaf(leaf, False)}"
        if kind == "conv_reduction":
            return f"{start}.conv_reduction.{name}_reduction_0/{_leaf(leaf, False)}"
        return f"{start}.ese.{leaf}"
    return key.replace("head.fc.", "classifier.")


def _leaf(name: str, separable: bool) -> str:
    for theirs, ours in _TIMM_LEAVES[separable].items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _check_gates(names: Iterable[str], cfg: CfgNode | None) -> None:
    """Refuse weights whose gates are in other blocks than the config's: the rest would load without complaint."""
    if cfg is None or cfg.MODEL.VOVNET.CONV_BODY not in VOVNET_SPECS:
        return
    node = cfg.MODEL.VOVNET
    spec = VOVNET_SPECS[node.CONV_BODY]
    found = {(int(m[1]), int(m[2])) for m in map(_GATE.fullmatch, names) if m}
    per_stage = dict(zip(STAGES, spec.blocks))
    last = set(per_stage.items())
    every = {(stage, block) for stage, blocks in per_stage.items() for block in range(1, blocks + 1)}
    wanted = (last if node.ESE_LAST_ONLY else every) if spec.ese else set()
    if found == wanted:
        return
    advice = "Check MODEL.VOVNET.CONV_BODY."
    if spec.ese and found in (last, every):
        advice = f"Set MODEL.VOVNET.ESE_LAST_ONLY to {found == last}."
    raise CheckpointError(
        f"The file has gates in {len(found)} blocks, but the model of MODEL.VOVNET.CONV_BODY {node.CONV_BODY!r} with "
        f"ESE_LAST_ONLY {node.ESE_LAST_ONLY} has them in {len(wanted)}. {advice}"
    )
