"""A feature pyramid whose levels may share a stride, as DetNet's do, and extra levels on top of a pyramid.

Papers: Feature Pyramid Networks (arXiv:1612.03144); DetNet (arXiv:1804.06215, figure 2E), where levels of equal
stride are added without upsampling.
Differs from Detectron2's FPN: layers and outputs are named by the level's index, not by log2 of its stride, so that
three levels of stride 16 get three names; a coarser map is resized to the exact size of the finer one, so that odd
sizes work. Where strides double, names and (for sizes the strides divide) results are those of Detectron2's FPN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.layers.norms import NormSpec, make_norm

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

DEFAULT_TOP_LEVELS = 2  # of MODEL.FPN.TOP_LEVELS
UPSAMPLE_MODES: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest"},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear_aligned": {"mode": "bilinear", "align_corners": True},  # what bilinear meant before torch 0.4
}


class TopBlock(nn.Module):
    """One or two extra levels of a pyramid, each by a 3x3 convolution of stride 2 from the one below.

    Args:
        in_channels: channels of the feature that they start from.
        out_channels: channels of the levels.
        levels: 1 (P6), or 2 (P6 and P7).
        in_feature: name of that feature: one of the bottom-up network, or a level of the pyramid.
        relu: apply a ReLU to P6 before P7 is computed from it.

    Attributes:
        num_levels, in_feature: what Detectron2's ``FPN`` reads.

    Raises:
        ConfigError: another number of levels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, levels: int, in_feature: str, relu: bool = True) -> None:
        super().__init__()
        self.num_levels = levels
        self.in_feature = in_feature
        self.relu = relu
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        if levels == 2:
            self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def xavier(self) -> TopBlock:
        """Start as Detectron2's top blocks do."""
        for conv in self.children():
            weight_init.c2_xavier_fill(conv)
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the levels from the feature (N, C, H, W)."""
        p6 = self.p6(x)
        if self.num_levels == 1:
            return [p6]
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


def levels_above(cfg: CfgNode, last_level: str) -> TopBlock | None:
    """``MODEL.FPN.TOP_LEVELS`` extra levels from the last level of the pyramid.

    ``MODEL.FCOS.TOP_LEVELS`` is the older name of the key, which counts where it is set.

    Raises:
        ConfigError: a number other than 0, 1, 2, or two names with different values.
    """
    width, levels, older = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.TOP_LEVELS, cfg.MODEL.FCOS.TOP_LEVELS
    key = "MODEL.FPN.TOP_LEVELS" if older is None else "MODEL.FCOS.TOP_LEVELS"
    if older is not None:
        if levels not in (DEFAULT_TOP_LEVELS, older):
            raise ConfigError(
                f"MODEL.FPN.TOP_LEVELS is {levels}, but MODEL.FCOS.TOP_LEVELS, its older name, is {older}. Set the "
                "first one only."
            )
        levels = older
    if levels not in (0, 1, 2):
        raise ConfigError(f"{key} is {levels}; expected 0, 1 (P6) or 2 (P6 and P7).")
    return TopBlock(width, width, levels=levels, in_feature=last_level).xavier() if levels else None


class LevelFPN(Backbone):
    """Feature pyramid over features whose strides stay or double from one to the next.

    Level k of the pyramid is ``p{k}``; the finest one has k = log2 of its stride, each further one counts one up.

    Args:
        bottom_up: the network below; kept as ``bottom_up``.
        in_features: its features, from fine to coarse.
        out_channels: channels of every level.
        norm: see ``make_norm``; convolutions have a bias only without one.
        top_block: makes ``top_block.num_levels`` further levels from ``top_block.in_feature``, a name of a bottom-up
            feature or of a level.
        upsample: a key of ``UPSAMPLE_MODES``, used where strides differ.
        output_levels: indices of the levels that have a 3x3 convolution; None for all.
        descend_from_outputs: the finer level gets the coarser one *behind* its 3x3 convolution.

    Raises:
        ConfigError: for strides that neither stay nor double, or an unknown mode, feature or level.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: NormSpec = "",
        top_block: nn.Module | None = None,
        *,
        upsample: str = "nearest",
        output_levels: Sequence[int] | None = None,
        descend_from_outputs: bool = False,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if not in_features:
            raise ConfigError(f"MODEL.FPN.IN_FEATURES is empty. Choose some of {', '.join(shapes)}.")
        for name in in_features:
            if name not in shapes:
                raise ConfigError(
                    f"MODEL.FPN.IN_FEATURES: the backbone does not return {name!r}. {did_you_mean(name, shapes)} "
                    "Add it to the OUT_FEATURES of the backbone, or use another."
                )
        if upsample not in UPSAMPLE_MODES:
            raise ConfigError(f"FPN_UPSAMPLE: no mode {upsample!r}. {did_you_mean(upsample, UPSAMPLE_MODES)}")
        strides = [shapes[name].stride for name in in_features]
        for (fine, coarse), name in zip(pairwise(strides), in_features[1:]):
            if coarse not in (fine, 2 * fine):
                raise ConfigError(
                    f"MODEL.FPN.IN_FEATURES: {name!r} has stride {coarse} behind a feature of stride {fine}, but "
                    "strides must stay or double from one feature to the next. Name all features from fine to coarse."
                )
        first = int(math.log2(strides[0]))
        self.levels = tuple(range(first, first + len(strides)))
        with_output = self.levels if output_levels is None else tuple(output_levels)
        if not set(with_output) <= set(self.levels):
            raise ConfigError(f"output_levels is {list(with_output)}, but the pyramid has levels {list(self.levels)}.")
        for level, name in zip(self.levels, in_features):
            self.add_module(f"fpn_lateral{level}", fpn_conv(shapes[name].channels, out_channels, 1, norm))
            if level in with_output:
                self.add_module(f"fpn_output{level}", fpn_conv(out_channels, out_channels, 3, norm))
        self.top_block = top_block
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.upsample = upsample
        self.descend_from_outputs = descend_from_outputs
        level_strides = dict(zip(self.levels, strides))
        for extra in range(top_block.num_levels if top_block is not None else 0):
            level_strides[self.levels[-1] + extra + 1] = strides[-1] * 2 ** (extra + 1)
        self._out_features = [f"p{level}" for level in level_strides]
        self._out_feature_strides = {f"p{level}": stride for level, stride in level_strides.items()}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = max(strides)

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride of the bottom-up network's features."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute all levels.

        Args:
            x: (N, C, H, W) normalized images.

        Returns:
            ``p{k}`` to (N, out_channels, Hk, Wk), from fine to coarse.
        """
        features = self.bottom_up(x)
        outputs: dict[str, Tensor] = {}
        coarser: Tensor | None = None
        for level, name in zip(reversed(self.levels), reversed(self.in_features)):
            lateral = self.get_submodule(f"fpn_lateral{level}")(features[name])
            if coarser is not None and coarser.shape[-2:] != lateral.shape[-2:]:  # equal strides have equal sizes
                coarser = F.interpolate(coarser, size=lateral.shape[-2:], **UPSAMPLE_MODES[self.upsample])
            merged = lateral if coarser is None else lateral + coarser
            output = (
                self.get_submodule(f"fpn_output{level}")(merged) if f"fpn_output{level}" in self._modules else merged
            )
            coarser = output if self.descend_from_outputs else merged
            outputs[f"p{level}"] = output
        ordered = {name: outputs[name] for name in self._out_features if name in outputs}
        if self.top_block is not None:
            source = self.top_block.in_feature
            extra = self.top_block(features[source] if source in features else ordered[source])
            ordered.update(zip(self._out_features[len(self.levels) :], extra))
        return ordered


def fpn_conv(in_channels: int, out_channels: int, kernel: int, norm: NormSpec) -> Conv2d:
    """Convolution of an odd kernel that keeps the size, and its norm if there is one; no activation."""
    norm_layer = make_norm(norm, out_channels)
    conv = Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm_layer is None, norm=norm_layer)
    weight_init.c2_xavier_fill(conv)
    return conv
