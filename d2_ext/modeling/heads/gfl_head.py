"""Heads of GFL: class scores that mean quality, and for each side of a box a distribution over its distance.

Paper: Generalized Focal Loss, arXiv:2006.04388; the sparse towers are those of CEASC (arXiv:2303.14488).
Checked against: mmdet 2.24, and the CEASC code at commit 2abfd1a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.layers.group_norm import AnySizeGroupNorm
from d2_ext.layers.sparse.rows import RowLayout, RowValues
from d2_ext.layers.tower import Scale, init_head_convs
from d2_ext.modeling.heads.ceasc_head import CeascHead, MaskNoise
from d2_ext.modeling.heads.fcos_head import common_channels

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn

GN_GROUPS = 32  # as in Detectron2's "GN"


@dataclass(frozen=True)
class GflPredictions:
    """What a dense head gives.

    Attributes:
        logits: K class logits a position.
        distributions: 4*(reg_max + 1) logits a position: for left, top, right, bottom the bins of the distance.
    """

    logits: RowValues
    distributions: RowValues


@dataclass(frozen=True)
class GflCeascPredictions(GflPredictions):
    """What a sparse head gives.

    Attributes:
        masks: by branch ("cls", "reg"): L masks (N, 1, H, W) of 0 and 1.
        norm_loss: mean over levels, branches and layers, unweighted; None in inference.
    """

    masks: dict[str, list[Tensor]]
    norm_loss: Tensor | None


class GflHead(nn.Module):
    """Dense towers of 3x3 convolution, norm and ReLU, shared by all levels, and two prediction layers.

    Args:
        input_shape: the L feature maps, all of the same number of channels.
        num_classes: K.
        num_convs: layers of each tower.
        norm: of the towers, as in ``detectron2.layers.get_norm``; convolutions have a bias only without one.
        prior_prob: initial score of every class.
        reg_max: largest distance to a side, in strides.

    Raises:
        ConfigError: for levels of different width.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
        reg_max: int = 16,
    ) -> None:
        super().__init__()
        channels = common_channels(input_shape)
        self.reg_max = reg_max
        self.cls_tower = _dense_tower(channels, num_convs, norm)
        self.reg_tower = _dense_tower(channels, num_convs, norm)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distributions = nn.Conv2d(channels, 4 * (reg_max + 1), 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in input_shape)
        init_head_convs(self)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``MODEL.GFL``."""
        return {**_common_arguments(cfg, input_shape), "norm": cfg.MODEL.GFL.NORM}

    def forward(self, features: Sequence[Tensor]) -> GflPredictions:
        """Predict for L maps (N, C, H, W)."""
        layout = RowLayout.of(features)
        logits = layout.flatten([self.cls_logits(self.cls_tower(x)) for x in features])
        distributions = layout.flatten([self.distributions(self.reg_tower(x)) for x in features])
        return GflPredictions(
            RowValues(logits, None, 0.0, layout), _scaled(RowValues(distributions, None, 0.0, layout), self.scales)
        )


class GflCeascHead(CeascHead):
    """CEASC's sparse towers with GFL's predictions.

    Inactive positions have the class logit ``cls_base``, and the base 0 in all bins: a uniform distribution, that is a
    distance of reg_max / 2 strides to each side.

    Args:
        input_shape: the L feature maps, all of the same number of channels.
        reg_max: largest distance to a side, in strides.
        ceasc: the other arguments of ``CeascHead``.
    """

    box_output = "distributions"

    @configurable
    def __init__(self, *, input_shape: list[ShapeSpec], reg_max: int = 16, **ceasc: Any) -> None:
        super().__init__(input_shape=input_shape, num_anchors=1, box_channels=4 * (reg_max + 1), **ceasc)
        self.reg_max = reg_max
        self.scales = nn.ModuleList(Scale() for _ in input_shape)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``MODEL.GFL`` and ``MODEL.CEASC``."""
        ceasc = cfg.MODEL.CEASC
        return {
            **_common_arguments(cfg, input_shape),
            "norm_groups": ceasc.NORM_GROUPS,
            "unbiased_variance": ceasc.UNBIASED_VARIANCE,
            "cls_base": ceasc.CLS_BASE,
            "temperature": ceasc.GUMBEL_TEMPERATURE,
            "norm_loss_target": ceasc.NORM_LOSS_TARGET,
        }

    def forward(self, features: Sequence[Tensor], noise: MaskNoise | None = None) -> GflCeascPredictions:
        """Predict for L maps (N, C, H, W); see ``CeascHead.forward``."""
        out = super().forward(features, noise)
        return GflCeascPredictions(out.logits, _scaled(out.deltas, self.scales), out.masks, out.norm_loss)


def _common_arguments(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
    gfl = cfg.MODEL.GFL
    if gfl.REG_MAX < 1:
        raise ConfigError(f"MODEL.GFL.REG_MAX is {gfl.REG_MAX}; expected a distance of at least 1 stride, usually 16.")
    return {
        "input_shape": input_shape,
        "num_classes": gfl.NUM_CLASSES,
        "num_convs": gfl.NUM_CONVS,
        "prior_prob": gfl.PRIOR_PROB,
        "reg_max": gfl.REG_MAX,
    }


def _dense_tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        *(
            Conv2d(
                channels,
                channels,
                3,
                padding=1,
                bias=not norm,
                norm=AnySizeGroupNorm(GN_GROUPS, channels) if norm == "GN" else get_norm(norm, channels),
                activation=nn.ReLU(inplace=True),
            )
            for _ in range(num_convs)
        )
    )


def _scaled(rows: RowValues, scales: nn.ModuleList) -> RowValues:
    """Multiply the rows of each level with its factor; their base is 0 and stays so."""
    factors = torch.cat([s.scale for s in scales])  # (L,)
    sizes = torch.tensor(rows.layout.map_sizes, device=rows.values.device)
    level = torch.arange(len(sizes), device=sizes.device)
    level = level.repeat_interleave(sizes, output_size=rows.layout.num_rows)  # (R,)
    factor = factors[level if rows.index is None else level[rows.index]]
    return replace(rows, values=rows.values * factor[:, None])
