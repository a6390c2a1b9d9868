"""Heads of FCOS and DeFCN on CEASC's sparse towers: only the positions that a mask selects are computed in inference.

Paper: CEASC, arXiv:2303.14488, for the towers; FCOS and DeFCN for what is predicted.
Differs from CEASC's RetinaNet: an inactive position of the box tower stands for a square of ``BOX_BASE`` strides to
each side, as CEASC's stands for its anchor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.tower import ContextSparseTower
from d2_ext.layers.tower import Scale
from d2_ext.modeling.heads.defcn_head import DeFCNPredictions
from d2_ext.modeling.heads.fcos_head import FCOSPredictions, common_channels
from d2_ext.modeling.heads.masked_branches import MaskedBranches, mean_norm_loss

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

BOX_BASE = 2.0  # strides to each side: with 4 strides a side, RetinaNet's smallest anchor


@dataclass(frozen=True)
class SparseOutput:
    """What the sparse towers give beside the predictions.

    Attributes:
        masks: by branch ("cls", "reg"): L masks (N, 1, Hl, Wl) of 0 and 1.
        norm_loss: mean over levels, branches and layers, unweighted; None in inference.
    """

    masks: dict[str, list[Tensor]]
    norm_loss: Tensor | None


class SparsePointHead(MaskedBranches):
    """Class and box tower of :class:`ContextSparseTower`, each with its own mask.

    Args:
        input_shape: channels (equal) and strides of the levels, finest first.
        num_classes: K.
        num_convs: masked layers of each tower.
        has_quality: whether the box tower also predicts a quality, or the filter of DeFCN; 0 at inactive positions.
        use_scale: a learnt factor per level before the activation of the distances.
        prior_prob: initial score of every class at active positions.
        cls_base: class logit at inactive positions.
        tower: further arguments of :class:`ContextSparseTower`.
    """

    box_activation = "relu"

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        has_quality: bool = False,
        use_scale: bool = True,
        prior_prob: float = 0.01,
        cls_base: float = -8.0,
        **tower: Any,
    ) -> None:
        super().__init__()
        tower |= {"channels": common_channels(input_shape), "num_layers": num_convs}
        self.strides = [shape.stride for shape in input_shape]
        box_outputs = {"boxes": 4, "quality": 1} if has_quality else {"boxes": 4}
        self.cls_tower = ContextSparseTower(outputs={"logits": num_classes}, bases={"logits": cls_base}, **tower)
        self.reg_tower = ContextSparseTower(outputs=box_outputs, bases={"boxes": BOX_BASE}, **tower)
        self.scales = nn.ModuleList(Scale() for _ in input_shape) if use_scale else None
        nn.init.constant_(self.cls_tower.predictors["logits"].bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: list[Tensor]) -> tuple[FCOSPredictions, SparseOutput]:
        """Predict on every level.

        Args:
            features: (N, C, Hl, Wl) each, finest first.
        """
        masks = self.masks(features)
        cls = self.cls_tower(features, masks["cls"])
        reg = self.reg_tower(features, masks["reg"])
        predictions = FCOSPredictions(
            cls.predictions["logits"].maps(),
            [self.distances(raw, level) for level, raw in enumerate(reg.predictions["boxes"].maps())],
            reg.predictions["quality"].maps() if "quality" in reg.predictions else [],
        )
        return predictions, SparseOutput(masks, mean_norm_loss(cls, reg))

    def distances(self, raw: Tensor, level: int) -> Tensor:
        raw = raw.float() if self.scales is None else self.scales[level](raw.float())
        return raw.relu() * self.strides[level]


def as_defcn(predictions: FCOSPredictions) -> DeFCNPredictions:
    """The same maps under the names of DeFCN, whose filter branch stands where FCOS has its quality."""
    return DeFCNPredictions(predictions.logits, predictions.distances, predictions.quality)


def build_sparse_head(
    cfg: CfgNode, input_shape: list[ShapeSpec], num_classes: int, *, num_convs: int, **options: Any
) -> SparsePointHead:
    """Build the head from ``MODEL.CEASC`` and the detector's own values.

    Args:
        cfg: the whole config.
        input_shape: of the levels.
        num_classes: K.
        num_convs: masked layers of each tower.
        options: ``has_quality``, ``use_scale``, ``prior_prob``.
    """
    ceasc = cfg.MODEL.CEASC
    return SparsePointHead(
        input_shape=input_shape,
        num_classes=num_classes,
        num_convs=num_convs,
        cls_base=ceasc.CLS_BASE,
        norm_groups=ceasc.NORM_GROUPS,
        unbiased_variance=ceasc.UNBIASED_VARIANCE,
        temperature=ceasc.GUMBEL_TEMPERATURE,
        norm_loss_target=ceasc.NORM_LOSS_TARGET,
        **options,
    )


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
