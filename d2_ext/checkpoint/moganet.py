"""Weights of MogaNet: its ImageNet classifiers, whose names are ours, and the trunks of mmdetection files.

Weights that were trained with ``attn_force_fp32`` (the releases of OpenMixup) need ``MODEL.MOGANET.DOUBLE_SILU``; no
tensor tells them apart.
"""

from __future__ import annotations

from d2_ext.checkpoint.inputs import IMAGENET_RGB, warn_about_input
from d2_ext.errors import CheckpointError

from detectron2.config import CfgNode
from torch import Tensor

PREFIX = "backbone."  # of mmdetection


def convert_moganet(tensors: dict[str, Tensor], cfg: CfgNode | None) -> dict[str, Tensor]:
    """Weights of the authors' repository.

    Args:
        tensors: by published name.
        cfg: of the model, or None.

    Returns:
        The trunk's weights, and a classifier's ``head``; pyramid and head of an mmdetection file under their own names.

    Raises:
        CheckpointError: if there is no MogaNet in the file.
    """
    renamed = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    if "patch_embed1.projection.0.weight" not in renamed:
        raise CheckpointError(
            f"No MogaNet in the file: its names look like {', '.join(list(tensors)[:3])}. Expected names such as "
            "'patch_embed1.projection.0.weight' or 'blocks1.0.attn.gate.weight'."
        )
    warn_about_input(cfg, IMAGENET_RGB, "moganet")
    return renamed
