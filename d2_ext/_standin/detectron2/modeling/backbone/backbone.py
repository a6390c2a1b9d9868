"""What every backbone promises."""

from __future__ import annotations

from abc import abstractmethod

from detectron2.layers import ShapeSpec
from torch import Tensor, nn


class Backbone(nn.Module):
    """A network that turns images into named feature maps.

    Subclasses set ``_out_features`` (the names), and ``_out_feature_channels`` and ``_out_feature_strides`` (by name),
    or override :meth:`output_shape`.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Turn images (N, C, H, W) into feature maps by name."""

    @property
    def size_divisibility(self) -> int:
        """What the height and width of the input must be multiples of, px; 0 if any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """More wishes for the padding: ``size_divisibility`` (used instead of the property) and ``square_size``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        facts = self._out_feature_channels, self._out_feature_strides
        rows = ((name, *(fact[name] for fact in facts)) for name in self._out_features)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in rows}
