"""Where masks meet objects: the losses of sparse towers, their log, and the masks for a user.

Paper: CEASC (arXiv:2303.14488). What a loss on the masks can be made of stands side by side in :class:`Sparsity`: per
branch and level the mask, the logits that it was made from, and the positions with an object.

Letters: N images, L levels, A anchors a position, R anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2_ext.errors import ConfigError, check_choice
from d2_ext.layers.sparse.rows import RowLayout
from d2_ext.layers.sparse.tower import SparseTowerConfig
from d2_ext.modeling.heads.base import SparseOutput
from d2_ext.modeling.heads.sparse import BRANCHES
from d2_ext.modeling.losses.sparsity import RATIO_TARGETS, active_ratios, positive_ratios, ratio_loss
from d2_ext.modeling.padding import run_in_groups

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import get_event_storage
from torch import Tensor

LevelMasks = dict[str, dict[str, Tensor]]
# Keys of MODEL.CEASC that only RetinaNet-CEASC reads, with their defaults.
RETINANET_KEYS = {
    "REG_BASE": 0.0,
    "LOSS_NORMALIZER": "local",
    "LOW_QUALITY_MATCHES": "reassign",
    "PRE_NMS_UNIT": "anchor",
}


@dataclass(frozen=True)
class Sparsity:
    """The losses of sparse towers; see ``MODEL.CEASC``.

    Attributes:
        norm_weight: alpha, of the distance between sparse and dense layers.
        ratio_weight: beta, of the distance of the active share from its target.
        ratio_target: what the target counts, see ``positive_ratios``.

    Raises:
        ConfigError: an unknown target.
    """

    norm_weight: float = 10.0
    ratio_weight: float = 1.0
    ratio_target: str = "anchors"

    def __post_init__(self) -> None:
        check_choice("MODEL.CEASC.RATIO_TARGET", self.ratio_target, RATIO_TARGETS)

    def losses(
        self, output: SparseOutput, layout: RowLayout, positive: Tensor, level_names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch; logs the active shares and their targets under ``mask_ratio/``.

        Args:
            output: of the head in training.
            layout: of the L levels.
            positive: bool (N, R), which anchors the assigner gave an object; those of a level stand together,
                row-major, and those of a position are neighbors.
            level_names: of the L levels, for the log.

        Returns:
            ``loss_norm`` and ``loss_ratio``.
        """
        # 1. The objects of each level, position by position: L tensors (N, H*W, A), as the masks (N, 1, H, W) of
        #    output.masks[branch][level] have them.
        cells = [h * w for _, h, w in layout.shapes]
        anchors = positive.shape[1] // sum(cells)
        objects = [p.unflatten(1, (-1, anchors)) for p in positive.split([c * anchors for c in cells], dim=1)]
        # 2. The active share of each branch and level, and its target.
        ratios = torch.stack([active_ratios([mask.active for mask in masks]) for masks in output.masks.values()])
        targets = positive_ratios(objects, self.ratio_target)
        # 3. Both by level and over all positions go into the log, in one transfer.
        weights = torch.tensor([float(size) for size in layout.map_sizes])
        table = torch.cat([ratios.detach(), targets[None]]).cpu()
        overall = (table * (weights / weights.sum())).sum(dim=1).tolist()
        scalars = {}
        for name, total, shares in zip([*output.masks, "target"], overall, table.tolist()):
            scalars[f"mask_ratio/{name}"] = total
            scalars.update({f"mask_ratio/{level}_{name}": share for level, share in zip(level_names, shares)})
        get_event_storage().put_scalars(smoothing_hint=False, **scalars)
        assert output.norm_loss is not None  # the head was in training
        # 4. L = ... + alpha * L_norm + beta * L_amm
        return {
            "loss_norm": self.norm_weight * output.norm_loss,
            "loss_ratio": self.ratio_weight * ratio_loss(ratios, targets),
        }


def read_sparsity(cfg: CfgNode) -> Sparsity:
    """The losses that ``MODEL.CEASC`` describes."""
    ceasc = cfg.MODEL.CEASC
    return Sparsity(ceasc.NORM_LOSS_WEIGHT, ceasc.RATIO_LOSS_WEIGHT, ceasc.RATIO_TARGET)


def read_towers(cfg: CfgNode, detector: str = "") -> dict[str, Any]:
    """The arguments of a ``SparseHead`` that ``MODEL.CEASC`` describes: ``cls_base`` and ``tower``.

    Args:
        cfg: the whole config.
        detector: name of a detector that does not read the keys of RetinaNet-CEASC; they must have their defaults.

    Raises:
        ConfigError: values that cannot work, or that would do nothing.
    """
    ceasc = cfg.MODEL.CEASC
    for key, default in RETINANET_KEYS.items():
        if detector and ceasc[key] != default:
            raise ConfigError(
                f"MODEL.CEASC.{key} is {ceasc[key]!r}, but only RetinaNetCEASC reads it; {detector} does not. Leave it "
                f"at {default!r}."
            )
    return {
        "cls_base": ceasc.CLS_BASE,
        "tower": SparseTowerConfig(
            norm_groups=ceasc.NORM_GROUPS,
            unbiased_variance=ceasc.UNBIASED_VARIANCE,
            temperature=ceasc.GUMBEL_TEMPERATURE,
            norm_loss_target=ceasc.NORM_LOSS_TARGET,
        ),
    }


def refuse_options(key: str, wrong: dict[str, bool]) -> None:
    """Check that nothing is asked for that sparse towers cannot do.

    Args:
        key: the detector's part of the config.
        wrong: by option (with its value), whether it is in the way.

    Raises:
        ConfigError: naming those that are.
    """
    named = [option for option, is_wrong in wrong.items() if is_wrong]
    if named:
        raise ConfigError(
            f"{key}.SPARSE does not go together with {', '.join(named)}: sparse towers have CE-GN in every layer, "
            "predict distances in strides and hand no features on. Change these, or set SPARSE False."
        )


@torch.no_grad()
def activation_masks(model: DenseDetector, batched_inputs: list[dict[str, Any]]) -> list[LevelMasks]:
    """Masks of inference of a detector whose head is a ``SparseHead``, in whatever mode it is.

    Args:
        model: the detector.
        batched_inputs: dicts with ``image`` (3, H, W).

    Returns:
        Per image, by level name ("p3", ...) and branch ("cls", "reg"): bool (ceil(H / stride), ceil(W / stride)),
        True where the head computes.
    """

    def run(group: list[dict[str, Any]]) -> list[LevelMasks]:
        images = model.preprocess_image(group)
        masks = model.head.hard_masks(model.features(images.tensor))
        cropped: list[LevelMasks] = []
        for row, size in enumerate(images.image_sizes):  # without the padding of the group
            cropped.append({})
            for level, (name, stride) in enumerate(zip(model.head_in_features, model.strides)):
                height, width = (math.ceil(int(side) / stride) for side in size)
                cropped[-1][name] = {branch: masks[branch][level][row, 0, :height, :width] for branch in BRANCHES}
        return cropped

    return run_in_groups(model.backbone, batched_inputs, run)
