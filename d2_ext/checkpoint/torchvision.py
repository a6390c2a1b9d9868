"""Weights of torchvision's ResNets under the names of Detectron2's ``ResNet``.

They expect RGB images, minus the ImageNet mean (123.675, 116.28, 103.53), divided by its deviation (58.395, 57.12,
57.375); set ``INPUT.FORMAT "RGB"``, ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` so. In bottlenecks (ResNet-50 and
deeper) the stride is in the 3x3 convolution: ``MODEL.RESNETS.STRIDE_IN_1X1 False``. The epsilon of the batch norms is
Detectron2's, 1e-5.

``d2_ext``'s trainer converts such a file itself where ``MODEL.WEIGHTS`` names it, see ``SafeCheckpointer``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from d2_ext.checkpoint.inputs import IMAGENET_RGB, warn_about_input
from d2_ext.errors import CheckpointError

from detectron2.config import CfgNode
from torch import Tensor

logger = logging.getLogger(__name__)

_MARKS = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")  # in every ResNet of torchvision
_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm", "fc": "linear"}
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn|downsample)\.?(\d)\.(.+)")
_SHORTCUT = {"0": "shortcut", "1": "shortcut.norm"}


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether these are the names of a ResNet of torchvision."""
    return set(_MARKS) <= set(names)


def convert_torchvision(tensors: dict[str, Tensor], cfg: CfgNode | None) -> dict[str, Tensor]:
    """Weights of torchvision's ResNet-18, 34, 50, ...

    Args:
        tensors: by published name.
        cfg: of the model, or None.

    Returns:
        The weights under the names of the trunk; the classifier as ``linear``, which detectors do not use.

    Raises:
        CheckpointError: if there is no ResNet of torchvision in the file.
    """
    if not is_torchvision_resnet(tensors):
        raise CheckpointError(
            f"No ResNet of torchvision in the file: its names look like {', '.join(list(tensors)[:3])}. Expected "
            f"names such as {', '.join(map(repr, _MARKS))}. Choose another source."
        )
    warn_about_input(cfg, IMAGENET_RGB, "torchvision")
    if cfg is not None and cfg.MODEL.RESNETS.STRIDE_IN_1X1 and "layer1.0.conv3.weight" in tensors:
        logger.warning(
            "MODEL.RESNETS.STRIDE_IN_1X1 is True, but weights of torchvision have the stride in the 3x3 convolution: "
            "set it to False."
        )
    return {trunk_name(key): value for key, value in tensors.items()}


def trunk_name(key: str) -> str:
    """Detectron2's name of a weight in torchvision's ResNet; names of other parts stay as they are.

    Example:
        >>> trunk_name("layer2.0.downsample.1.running_mean")
        'res3.0.shortcut.norm.running_mean'
    """
    if match := _BLOCK.fullmatch(key):
        stage, block, kind, index, leaf = match.groups()
        start = f"res{int(stage) + 1}.{block}"  # Detectron2 counts from the stem
        if kind == "downsample":
            return f"{start}.{_SHORTCUT.get(index, f'downsample.{index}')}.{leaf}"
        return f"{start}.conv{index}.{'norm.' if kind == 'bn' else ''}{leaf}"
    module, _, leaf = key.partition(".")
    return f"{_STEM[module]}.{leaf}" if module in _STEM else key
