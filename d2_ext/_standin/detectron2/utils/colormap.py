"""Colors for drawing: a fixed palette, and random picks from it."""

from __future__ import annotations

import colorsys
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_GOLDEN_RATIO = (5**0.5 - 1) / 2
# Neighbors differ as much in hue as they can; every third color is paler, every second one darker.
_PALETTE = np.array(
    [colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, 0.95 - 0.3 * (i % 3 == 2), 1 - 0.3 * (i % 2)) for i in range(80)],
    dtype=np.float32,
)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """The palette.

    Args:
        rgb: order of the channels; by default BGR.
        maximum: value of a full channel, 1 or 255.

    Returns:
        (80, 3) float32.
    """
    return (_PALETTE if rgb else _PALETTE[:, ::-1]) * maximum


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One color, (3,) float32, drawn with numpy's global generator; arguments as for :func:`colormap`."""
    colors = colormap(rgb, maximum)
    return colors[np.random.randint(0, len(colors))]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """``N`` different colors, drawn with Python's global generator; arguments as for :func:`colormap`.

    Raises:
        ValueError: for more colors than the palette has.
    """
    return random.sample(list(colormap(rgb, maximum)), N)
