"""Feature pyramids (arXiv:1612.03144) on top of a backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.layers._weight_init import xavier_fill
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FPN", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"]


class FPN(Backbone):
    """Maps p<s> of equal channels, where 2**s is the stride, made top-down from the backbone's maps."""

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
        """Build the pyramid.

        Args:
            bottom_up: the backbone.
            in_features: its maps to use, finest first; each stride must be twice the one before.
            out_channels: channels of all maps of the pyramid.
            norm: after each convolution; see ``get_norm``. Without it, the convolutions have a bias.
            top_block: makes further levels. It has ``num_levels``, how many, and ``in_feature``, the name of the map
                that it is called with (of the backbone's, or else of the pyramid's).
            fuse_type: ``"sum"`` or ``"avg"`` of a map and the one above it.
            square_pad: side in px to pad pictures to; 0: only as far as needed.
        """
        super().__init__()
        assert isinstance(bottom_up, Backbone), f"bottom_up must be a Backbone, not {type(bottom_up).__name__}."
        assert in_features, "in_features must not be empty."
        assert fuse_type in ("sum", "avg"), f"fuse_type is 'sum' or 'avg', not {fuse_type!r}."
        shapes = bottom_up.output_shape()
        strides = [shapes[f].stride for f in in_features]
        _assert_strides_are_log2_contiguous(strides)
        # Plain lists, coarsest first, beside the registered modules.
        self.lateral_convs: list[nn.Module] = []
        self.output_convs: list[nn.Module] = []
        for feature, level in zip(in_features, map(_log2, strides)):
            for kind, kernel, convs in (("lateral", 1, self.lateral_convs), ("output", 3, self.output_convs)):
                channels = shapes[feature].channels if kind == "lateral" else out_channels
                convs.insert(0, _conv(channels, out_channels, kernel, norm))
                self.add_module(f"fpn_{kind}{level}", convs[0])
            # Both exist before one is filled: a seed gives Detectron2's weights.
            for convs in (self.lateral_convs, self.output_convs):
                xavier_fill(convs[0])
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        num_top = 0 if top_block is None else top_block.num_levels
        strides = strides + [2 ** (_log2(strides[-1]) + i) for i in range(1, num_top + 1)]
        self._out_feature_strides = {f"p{_log2(s)}": s for s in strides}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = shapes[in_features[-1]].stride  # not of the top block, which can round
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest map of the backbone, so that maps of twice the size fit on each other."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The side of square pictures; 0 asks for nothing."""
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map pictures (N, C, H, W) to the maps of the pyramid, finest first."""
        bottom_up = self.bottom_up(x)
        above, results = None, []
        for name, lateral, output in zip(reversed(self.in_features), self.lateral_convs, self.output_convs):
            fused = lateral(bottom_up[name])
            if above is not None:
                fused = fused + F.interpolate(above, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    fused = fused / 2
            results.insert(0, output(fused))
            above = fused
        if self.top_block is not None:
            source = self.top_block.in_feature
            top_in = bottom_up[source] if source in bottom_up else results[self._out_features.index(source)]
            results.extend(self.top_block(top_in))
        assert len(results) == len(self._out_features), f"The top block made other levels than {self._out_features}."
        return dict(zip(self._out_features, results))


class LastLevelMaxPool(nn.Module):
    """p6 from every second cell of p5."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, C, H, W) to one map (N, C, H / 2, W / 2)."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 by convolutions of stride 2 from the last map of the backbone (arXiv:1708.02002)."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        for name, channels in (("p6", in_channels), ("p7", out_channels)):
            self.add_module(name, nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=1))
        self.apply(lambda module: xavier_fill(module) if isinstance(module, nn.Conv2d) else None)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Map (N, C, H, W) to maps of a half and a quarter of the size."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN, with p6 by pooling."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN, with p6 and p7 by convolutions from res5."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    keys = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up,
        in_features=keys.IN_FEATURES,
        out_channels=keys.OUT_CHANNELS,
        norm=keys.NORM,
        top_block=top_block,
        fuse_type=keys.FUSE_TYPE,
    )


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
    )


def _log2(stride: int) -> int:
    return int(math.log2(stride))


def _assert_strides_are_log2_contiguous(strides: Sequence[int]) -> None:
    for finer, coarser in pairwise(strides):
        assert coarser == 2 * finer, f"Each stride must be twice the one before: {list(strides)}."
