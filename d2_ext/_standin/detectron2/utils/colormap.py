"""Colors for drawing: a fixed palette, and random picks from it."""

from __future__ import annotations

import colorsys

import numpy as np
from detectron2._missing import refuse

__all__ = ["colormap", "random_color"]

__getattr__ = refuse(__name__, "random_colors")

_GOLDEN_RATIO = (5**0.5 - 1) / 2
# Neighbors differ as much in hue as they can; every third color is paler, every second one darker.
_PALETTE = np.array(
    [colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, 0.95 - 0.3 * (i % 3 == 2), 1 - 0.3 * (i % 2)) for i in range(80)],
    dtype=np.float32,
)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """The palette, (80, 3) float32, in BGR unless ``rgb``; ``maximum`` is the value of a full channel, 1 or 255."""
    return (_PALETTE if rgb else _PALETTE[:, ::-1]) * maximum


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One color, (3,) float32, drawn with numpy's global generator; arguments as for :func:`colormap`."""
    colors = colormap(rgb, maximum)
    return colors[np.random.randint(0, len(colors))]
