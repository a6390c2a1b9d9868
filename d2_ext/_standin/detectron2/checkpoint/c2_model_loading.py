"""Weights under other names than the model's: those of Caffe2, and those of a part of the model."""

from __future__ import annotations

import logging
import os
import re

import torch
from detectron2._missing import refuse

_StateDict = dict[str, torch.Tensor]

logger = logging.getLogger(__name__)

__getattr__ = refuse(__name__, "convert_c2_detectron_names")

# How a name of Caffe2's ResNets begins or ends, or what it has within, and what Detectron2 says; "_" is "." by then.
_CAFFE2 = {
    r"^res\.conv1\.(?=bn\.)": "conv1.",
    r"^conv1\.": "stem.conv1.",
    r"^pred\.": "linear.",
    r"\.branch1\.": ".shortcut.",
    r"\.branch2a\.": ".conv1.",
    r"\.branch2b\.": ".conv2.",
    r"\.branch2c\.": ".conv3.",
    r"\bbn\.(rm|running\.mean)$": "norm.running_mean",
    r"\bbn\.(riv|running\.var)$": "norm.running_var",
    r"\b[bg]n\.(s|gamma)$": "norm.weight",
    r"\b[bg]n\.(b|beta)$": "norm.bias",
    r"\.w$": ".weight",
    r"\.b$": ".bias",
}


def convert_basic_c2_names(original_keys: list[str]) -> list[str]:
    """Rename the weights of Caffe2's ResNets to Detectron2's, such as "res2_0_branch2a_w" to "res2.0.conv1.weight"."""
    names = []
    for name in original_keys:
        name = name.replace("_", ".")
        for pattern, ours in _CAFFE2.items():
            name = re.sub(pattern, ours, name)
        names.append(name)
    return names


def align_and_update_state_dicts(
    model_state_dict: _StateDict, ckpt_state_dict: _StateDict, c2_conversion: bool = True
) -> _StateDict:
    """Give the weights of a checkpoint the names of a model, of which they are whole endings.

    Each name of the model takes the longest name of the checkpoint that it equals or ends with, after a dot;
    ValueError if one weight matches two names. ``c2_conversion``: the checkpoint's names are Caffe2's. Gives all its
    weights in their order; those that match nothing, or differ in shape, under the (converted) names they had.
    """
    names = convert_basic_c2_names(list(ckpt_state_dict)) if c2_conversion else list(ckpt_state_dict)
    weights = dict(zip(names, ckpt_state_dict.values()))
    matched: dict[str, str] = {}
    for key, value in model_state_dict.items():
        endings = (key.split(".", first)[-1] for first in range(key.count(".") + 1))  # whole parts, the longest first
        name = next(filter(weights.__contains__, endings), None)
        if name is None:
            continue
        if weights[name].shape != value.shape:
            shapes = tuple(weights[name].shape), tuple(value.shape)
            logger.warning("%s is not loaded into %s: its shape is %s, that of the model %s.", name, key, *shapes)
        elif matched.setdefault(name, key) != key:
            raise ValueError(f"Weight {name!r} of the checkpoint fits both {matched[name]!r} and {key!r} of the model.")
    if matched:
        part = _longest_common_prefix_str([*matched.values()])
        logger.info("%d of %d weights found their places by name, below '%s'.", len(matched), len(weights), part)
    else:
        logger.warning("None of the %d weights of the checkpoint has a name that the model knows.", len(weights))
    return {matched.get(name, name): value for name, value in weights.items()}


def _longest_common_prefix_str(names: list[str]) -> str:
    return os.path.commonprefix(names)  # noqa: RUF071 - names are no paths
