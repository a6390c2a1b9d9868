"""What a detector expects of a backbone."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

__all__ = ["Backbone"]


class Backbone(nn.Module, metaclass=ABCMeta):
    """A module from pictures to named feature maps.

    Subclasses fill ``_out_features`` (names), ``_out_feature_channels`` and ``_out_feature_strides`` (by name), or
    override ``output_shape``.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map pictures (N, C, H, W) to feature maps (N, C', H', W') by name."""

    @property
    def size_divisibility(self) -> int:
        """Number that H and W must be multiples of; 0 if any will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes, as ``ImageList.from_tensors`` takes them: ``size_divisibility``, ``square_size``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
