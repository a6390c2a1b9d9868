"""Head of RetinaNet-CEASC: two context-enhanced sparse towers, shared by all levels.

Paper: CEASC (arXiv:2303.14488). Checked against: the authors' released code at commit 2abfd1a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.rows import RowValues
from d2_ext.layers.sparse.tower import ContextSparseTower
from d2_ext.modeling.heads.masked_branches import MaskedBranches, MaskNoise, mean_norm_loss

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from torch import Tensor, nn


@dataclass(frozen=True)
class CeascPredictions:
    """What the head gives, in training and in inference.

    Attributes:
        logits: A*K class logits a position, anchor-major.
        deltas: A*4 box deltas a position, anchor-major.
        masks: by branch ("cls", "reg"): L masks (N, 1, H, W) of 0 and 1.
        norm_loss: mean over levels, branches and layers, unweighted; None in inference.
    """

    logits: RowValues
    deltas: RowValues
    masks: dict[str, list[Tensor]]
    norm_loss: Tensor | None


class CeascHead(MaskedBranches):
    """Class and box towers, each with its own mask.

    Args:
        input_shape: the L feature maps, all of the same number of channels.
        num_classes: K.
        num_anchors: A, anchors a position.
        num_convs: masked layers of each tower.
        prior_prob: initial class score of every anchor.
        box_channels: numbers of an anchor's box; 4 deltas in RetinaNet.
        norm_groups, unbiased_variance, temperature, norm_loss_target: see ``ContextSparseTower``.
        cls_base: class logit at inactive positions.
        reg_base: box delta at inactive positions.

    Attributes:
        all_boxes: False allows inference to leave out the deltas where the class branch is inactive, and everything
            that only they depend on. For detectors that never look at them.

    Raises:
        ConfigError: for values that cannot work.
    """

    box_output = "deltas"  # name of the box tower's prediction layer

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        box_channels: int = 4,
        num_convs: int = 4,
        prior_prob: float = 0.01,
        norm_groups: int = 32,
        unbiased_variance: bool = True,
        cls_base: float = -8.0,
        reg_base: float = 0.0,
        temperature: float = 1.0,
        norm_loss_target: str = "group_norm",
    ) -> None:
        super().__init__()
        self.all_boxes = True
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ConfigError(
                f"The CEASC head is shared by its levels, but they have {sorted(channels)} channels. Give it levels of "
                "equal width (MODEL.RETINANET.IN_FEATURES)."
            )
        shared: dict[str, Any] = {
            "channels": channels.pop(),
            "num_layers": num_convs,
            "norm_groups": norm_groups,
            "unbiased_variance": unbiased_variance,
            "temperature": temperature,
            "norm_loss_target": norm_loss_target,
        }
        self.cls_tower = ContextSparseTower(
            outputs={"logits": num_anchors * num_classes}, bases={"logits": cls_base}, **shared
        )
        self.reg_tower = ContextSparseTower(
            outputs={self.box_output: num_anchors * box_channels}, bases={self.box_output: reg_base}, **shared
        )
        nn.init.constant_(self.cls_tower.predictors["logits"].bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``MODEL.RETINANET`` and ``MODEL.CEASC``."""
        num_anchors = set(build_anchor_generator(cfg, input_shape).num_anchors)
        if len(num_anchors) != 1:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR gives {sorted(num_anchors)} anchors a position on different levels; the "
                "shared head needs the same number on all."
            )
        if cfg.MODEL.RETINANET.NORM:
            raise ConfigError(
                f"MODEL.RETINANET.NORM is {cfg.MODEL.RETINANET.NORM!r}, but CEASC's towers always have CE-GN. Leave "
                'it "", and set MODEL.CEASC.NORM_GROUPS for the groups.'
            )
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": num_anchors.pop(),
            "num_convs": cfg.MODEL.RETINANET.NUM_CONVS,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
            "norm_groups": cfg.MODEL.CEASC.NORM_GROUPS,
            "unbiased_variance": cfg.MODEL.CEASC.UNBIASED_VARIANCE,
            "cls_base": cfg.MODEL.CEASC.CLS_BASE,
            "reg_base": cfg.MODEL.CEASC.REG_BASE,
            "temperature": cfg.MODEL.CEASC.GUMBEL_TEMPERATURE,
            "norm_loss_target": cfg.MODEL.CEASC.NORM_LOSS_TARGET,
        }

    def forward(self, features: Sequence[Tensor], noise: MaskNoise | None = None) -> CeascPredictions:
        """Predict for L maps (N, C, H, W).

        Args:
            features: the maps; in inference fastest in channels-last order.
            noise: of the masks (training only), see ``masks``; drawn if None.
        """
        masks = self.masks(features, noise)
        cls = self.cls_tower(features, masks["cls"])
        reg = self.reg_tower(features, masks["reg"], None if self.all_boxes else masks["cls"])
        return CeascPredictions(
            cls.predictions["logits"], reg.predictions[self.box_output], masks, mean_norm_loss(cls, reg)
        )
