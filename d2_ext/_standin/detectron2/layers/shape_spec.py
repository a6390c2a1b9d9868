"""What is known of the shape of a map before there is one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Channels, size in px and stride to the image of a feature map; None where it is unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
