"""Feature pyramids (FPN, arXiv:1612.03144): coarse maps of a backbone enlarged and merged into the finer ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor, nn


class FPN(Backbone):
    """Pyramid over the maps of another backbone; its levels are called ``p<n>``, with a stride of 2**n px.

    Args:
        in_features: which maps of ``bottom_up`` to use, finest first; each has twice the stride of the one before.
        norm: after every convolution, as in ``detectron2.layers.get_norm``; "" for none.
        top_block: makes ``num_levels`` more levels, each coarser by 2, from the map or level ``in_feature``.
        fuse_type: how maps are merged, ``"sum"`` or ``"avg"``.
        square_pad: side (px) of the square that images shall be padded to; 0 for none.

    Raises:
        AssertionError: for other maps, strides or ways to merge.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        assert isinstance(bottom_up, Backbone), f"bottom_up is a {type(bottom_up).__name__}, not a Backbone"
        assert in_features, "in_features is empty: a pyramid needs one map at least"
        assert fuse_type in ("sum", "avg"), f"fuse_type {fuse_type!r}: expected 'sum' or 'avg'"
        given = bottom_up.output_shape()
        strides = [given[name].stride for name in in_features]
        doubled = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
        assert doubled, f"the maps {list(in_features)} have strides {strides}; expected each twice the one before"
        first = strides[0].bit_length() - 1  # log2
        # The order of the children is the order of a checkpoint's keys; each pair of weights is drawn together.
        for level, name in enumerate(in_features, start=first):
            lateral = _conv(given[name].channels, out_channels, 1, norm)
            output = _conv(out_channels, out_channels, 3, norm)
            for prefix, conv in (("fpn_lateral", lateral), ("fpn_output", output)):
                self.add_module(f"{prefix}{level}", _fill(conv))
        self.top_block = top_block
        self.bottom_up = bottom_up
        self.in_features, self._averages = tuple(in_features), fuse_type == "avg"
        self._first_level, self.square_pad, self._largest_stride = first, square_pad, strides[-1]
        levels = range(first, first + len(strides) + (top_block.num_levels if top_block is not None else 0))
        self._out_features = [f"p{level}" for level in levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest map that is merged: there, an enlarged map must be as large as the finer one."""
        return self._largest_stride

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The side of the square to pad to, 0 for none."""
        return {"square_size": self.square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Turn images (N, C, H, W) into the levels, finest first."""
        maps = self.bottom_up(x)
        pyramid: dict[str, Tensor] = {}
        merged = None
        for level, name in reversed(list(enumerate(self.in_features, start=self._first_level))):
            lateral = self.get_submodule(f"fpn_lateral{level}")(maps[name])
            if merged is not None:
                lateral = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = lateral / 2 if self._averages and merged is not None else lateral
            pyramid[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(merged)
        if self.top_block is not None:
            source = self.top_block.in_feature
            extra = self.top_block(maps[source] if source in maps else pyramid[source])
            pyramid.update(zip(self._out_features[len(self.in_features) :], extra, strict=True))
        return {name: pyramid[name] for name in self._out_features}


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    options = {"padding": kernel_size // 2, "bias": norm == "", "norm": get_norm(norm, out_channels)}
    return Conv2d(in_channels, out_channels, kernel_size, **options)


def _fill(conv: nn.Conv2d) -> nn.Conv2d:  # as Caffe2's XavierFill: uniform, the variance 1 over the inputs of an output
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class LastLevelMaxPool(nn.Module):
    """Top block of two-stage detectors: one level, every second place of P5."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels, self.in_feature = 1, "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Take every second place of (N, C, H, W)."""
        return [F.max_pool2d(x, 1, stride=2)]


class LastLevelP6P7(nn.Module):
    """Top block of RetinaNet (arXiv:1708.02002): P6 and P7, convolved with stride 2 from ``in_feature``."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels, self.in_feature = 2, in_feature
        self.p6, self.p7 = (nn.Conv2d(c, out_channels, 3, 2, 1) for c in (in_channels, out_channels))
        for conv in self.children():
            _fill(conv)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Turn (N, C, H, W) into maps of half and of a quarter of its height and width."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6.relu())]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with a pyramid and a pooled top level, from ``MODEL.RESNETS`` and ``MODEL.FPN``."""
    return _pyramid(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with a pyramid and RetinaNet's P6 and P7 above res5, from ``MODEL.RESNETS`` and ``MODEL.FPN``."""
    resnet = build_resnet_backbone(cfg, input_shape)
    return _pyramid(cfg, resnet, LastLevelP6P7(resnet.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _pyramid(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    keys = cfg.MODEL.FPN
    return FPN(bottom_up, keys.IN_FEATURES, keys.OUT_CHANNELS, keys.NORM, top_block, keys.FUSE_TYPE)
