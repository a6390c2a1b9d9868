"""A list of colours that are easy to tell apart."""

from __future__ import annotations

import colorsys
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_GOLDEN_ANGLE = 0.61803399  # of a full turn: neighbouring hues, and any few in a row, lie far apart
_STYLES = ((1.0, 1.0), (0.65, 0.95), (0.9, 0.7))  # saturation and value, in turn
_NUM_COLORS = 74

# (74, 3) RGB in 0..1.
_COLORS = np.array(
    [colorsys.hsv_to_rgb(i * _GOLDEN_ANGLE % 1.0, *_STYLES[i % len(_STYLES)]) for i in range(_NUM_COLORS)],
    dtype=np.float32,
)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """All colours.

    Args:
        rgb: order of the channels; BGR by default.
        maximum: 255 or 1.

    Returns:
        (N, 3) float32 in 0..maximum.
    """
    assert maximum in (255, 1), f"maximum must be 255 or 1, got {maximum}"
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """(3,) one colour, drawn with numpy's global generator; arguments as for :func:`colormap`."""
    return colormap(rgb, maximum)[np.random.randint(0, len(_COLORS))]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """``N`` different colours (at most 74), drawn with ``random``; arguments as for :func:`colormap`."""
    colors = colormap(rgb, maximum)
    return [colors[i] for i in random.sample(range(len(colors)), N)]
