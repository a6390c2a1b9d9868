"""What a module says about the tensors that it takes and gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map, as far as it is known before there is a picture.

    Attributes:
        channels: number of channels.
        height, width: size in cells.
        stride: px of the input per cell.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
