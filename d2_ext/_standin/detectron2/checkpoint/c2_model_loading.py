"""Matching the parameter names of a file to those of a model, and the names of Caffe2."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Sequence

import torch

StateDict = dict[str, torch.Tensor]

# Applied in this order to names whose "_" have become "."
_BASIC_RENAMES = [
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"bn\.s$|gn\.s$|bn\.gamma$", "norm.weight"),
    (r"bn\.bias$|gn\.bias$|bn\.beta$", "norm.bias"),
    (r"bn\.rm|bn\.running\.mean$", "norm.running_mean"),
    (r"bn\.riv$|bn\.running\.var$", "norm.running_var"),
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
]
_DETECTOR_RENAMES = [
    (r"^bbox\.pred", "bbox_pred"),
    (r"^cls\.score", "cls_score"),
    (r"^fpn\.inner\.res(\d+)\.(?:.*\.)?norm\.(?:.*\.)?(\w+)$", r"fpn_lateral\1.norm.\2"),
    (r"^fpn\.inner\.res(\d+)\..*?(\w+)$", r"fpn_lateral\1.\2"),
    (r"^fpn\.res(\d+)\.(?:.*\.)?norm\.(?:.*\.)?(\w+)$", r"fpn_output\1.norm.\2"),
    (r"^fpn\.res(\d+)\..*?(\w+)$", r"fpn_output\1.\2"),
]


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_basic_c2_names(original_keys: list[str]) -> list[str]:
    """Names of a backbone of Caffe2 as Detectron2 writes them, in the same order."""
    linear = {"pred_b": "linear_b", "pred_w": "linear_w"}
    return [_rename(linear.get(key, key).replace("_", "."), _BASIC_RENAMES) for key in original_keys]


def convert_c2_detectron_names(weights: StateDict) -> tuple[StateDict, dict[str, str]]:
    """Rename the weights of a backbone, FPN or box predictor of Caffe2, whose background class is the first.

    Returns:
        The weights under new names, and the old name of each new one.
    """
    logger = logging.getLogger(__name__)
    logger.info("Renaming Caffe2 weights ......")
    old_names = sorted(weights)
    new_names = [_rename(name, _DETECTOR_RENAMES) for name in convert_basic_c2_names(old_names)]
    assert len(set(new_names)) == len(new_names)
    renamed = {}
    for old, new in zip(old_names, new_names):
        value = weights[old]
        if new.startswith("bbox_pred."):
            value = value[4:]  # boxes of the background class mean nothing
            shapes = f"{tuple(weights[old].shape)} to {tuple(value.shape)}"
            logger.info(f"Remove prediction weight for background class in {new}. The shape changes from {shapes}.")
        elif new.startswith("cls_score."):
            value = torch.cat([value[1:], value[:1]])
            last = len(value) - 1
            logger.info(f"Move classification weights for background class in {new} from index 0 to index {last}.")
        renamed[new] = value
    return renamed, dict(zip(new_names, old_names))


def align_and_update_state_dicts(
    model_state_dict: StateDict, ckpt_state_dict: StateDict, c2_conversion: bool = True
) -> StateDict:
    """Give the weights of a file the names of the model, for models that hold the file's network in a sub-module.

    Each name of the model takes the longest name of the file that it equals or ends with (after a dot). Weights of a
    wrong shape are left out with a warning.

    Args:
        model_state_dict: names and shapes of the model.
        ckpt_state_dict: weights of the file.
        c2_conversion: whether to convert names of Caffe2 first.

    Returns:
        Weights for the model, and those that match nothing under their own names.

    Raises:
        ValueError: if one weight of the file fits two names of the model.
    """
    logger = logging.getLogger(__name__)
    old_names = {name: name for name in ckpt_state_dict}
    if c2_conversion:
        ckpt_state_dict, old_names = convert_c2_detectron_names(ckpt_state_dict)

    matched: dict[str, str] = {}  # name in the file -> name in the model
    for model_name in sorted(model_state_dict):
        name = next((suffix for suffix in _suffixes(model_name) if suffix in ckpt_state_dict), None)
        if name is None:
            continue
        shape, wanted = ckpt_state_dict[name].shape, model_state_dict[model_name].shape
        if shape != wanted:
            logger.warning(
                f"Shape of {name} in checkpoint is {shape}, while shape of {model_name} in model is {wanted}."
            )
            logger.warning(f"{name} will not be loaded. Please double check and see if this is desired.")
        elif name in matched:
            logger.error(
                f"Ambiguity found for {name} in checkpoint! It matches at least two keys in the model "
                f"({model_name} and {matched[name]})."
            )
            raise ValueError("Cannot match one checkpoint key to multiple keys in the model.")
        else:
            matched[name] = model_name
    if not matched:
        logger.warning("No weights in checkpoint matched with model.")
        return ckpt_state_dict
    _log_matches({model_name: old_names[name] for name, model_name in matched.items()})
    return {matched.get(name, name): value for name, value in ckpt_state_dict.items()}


def _suffixes(name: str) -> Iterator[str]:
    """``a.b.c``, ``b.c``, ``c``."""
    while True:
        yield name
        _, dot, name = name.partition(".")
        if not dot:
            return


def _log_matches(names: dict[str, str]) -> None:
    """Say which sub-module was filled, by how many groups of parameters (name in the model -> name in the file)."""
    prefix = _longest_common_prefix(list(names))
    logging.getLogger(__name__).info(
        f"Following weights matched with submodule {prefix[:-1] or 'model'} - Total num: {_count_groups(names)}"
    )


def _count_groups(names: dict[str, str]) -> int:
    """Number of groups: the outermost sub-modules whose names in the file begin alike, and single parameters."""
    prefixes = sorted((name[: name.rfind(".") + 1] for name in names if "." in name), key=len)
    group_of: dict[str, str] = {}
    for prefix in dict.fromkeys(prefixes):
        group = [name for name in names if name.startswith(prefix)]
        if len(group) > 1 and _longest_common_prefix_str([names[name] for name in group]):
            group_of.update((name, prefix) for name in group if name not in group_of)
    return len(set(group_of.values())) + sum(name not in group_of for name in names)


def _longest_common_prefix(names: list[str]) -> str:
    """Common leading parts of dotted names, with a dot at the end: ``abc.`` for ``abc.zfg`` and ``abc.zef``."""
    return "".join(f"{part}." for part in _common_start([name.split(".") for name in names]))


def _longest_common_prefix_str(names: list[str]) -> str:
    """Common leading letters."""
    return "".join(_common_start(names))


def _common_start(sequences: Sequence[Sequence[str]]) -> list[str]:
    """Leading items that all sequences share."""
    shared = itertools.takewhile(lambda items: len(set(items)) == 1, zip(*sequences))
    return [items[0] for items in shared]
