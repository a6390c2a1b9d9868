"""Ground materials: base colors, and noise in world coordinates that gives them grain, patches and patterns."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

TILE = 256


@dataclass(frozen=True)
class Material:
    """How a kind of ground looks.

    Attributes:
        colors: BGR candidates; one is drawn for each image.
        coarse: strength of patches of some 8 m.
        middle: strength of patches of some 1.5 m.
        fine: strength of the grain.
        pattern: "" or "slabs" or "rows" (of a crop).
    """

    colors: tuple[tuple[int, int, int], ...]
    coarse: float
    middle: float
    fine: float
    pattern: str = ""


MATERIALS = {
    "asphalt": Material(((92, 92, 90), (112, 110, 106), (76, 76, 78), (128, 128, 124)), 0.03, 0.02, 0.04),
    "concrete": Material(((128, 134, 138), (116, 122, 128), (140, 144, 144)), 0.03, 0.025, 0.03),
    "paving": Material(((126, 136, 148), (112, 118, 142), (132, 136, 136), (108, 124, 142)), 0.02, 0.02, 0.03, "slabs"),
    "grass": Material(((62, 112, 92), (56, 98, 78), (72, 118, 112), (52, 92, 84), (84, 128, 132)), 0.09, 0.06, 0.09),
    "soil": Material(((98, 128, 154), (112, 146, 172), (84, 108, 130)), 0.06, 0.04, 0.06),
    "gravel": Material(((120, 130, 136), (106, 116, 124)), 0.04, 0.03, 0.09),
    "crop": Material(((62, 118, 106), (70, 132, 140), (82, 110, 128)), 0.06, 0.05, 0.08, "rows"),
    "water": Material(((96, 84, 58), (88, 92, 66), (110, 98, 78)), 0.06, 0.02, 0.02),
}
NAMES = tuple(MATERIALS)


@functools.lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """(TILE, TILE) float32 noise of zero mean that repeats without a seam; the same in every process."""
    rng = np.random.default_rng(20240229)
    total = np.zeros((TILE, TILE), np.float32)
    for cells, weight in ((8, 0.8), (16, 0.7), (32, 0.6), (64, 0.55), (128, 0.5)):
        grid = np.pad(rng.normal(size=(cells, cells)).astype(np.float32), 2, mode="wrap")
        step = TILE // cells
        up = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += weight * up[2 * step : 2 * step + TILE, 2 * step : 2 * step + TILE]
    return ((total - total.mean()) / total.std()).astype(np.float32)


def sample_noise(grid: np.ndarray, frequency: float, offset: np.ndarray) -> np.ndarray:
    """Noise (H, W) at points (H, W, 2) in meters; ``frequency`` in tile pixels a meter."""
    at = grid * np.float32(frequency) + offset.astype(np.float32)
    return cv2.remap(noise_tile(), at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def grain(grid: np.ndarray, materials: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Factors (H, W, 3) by which the flat ground colors are multiplied.

    Args:
        grid: (H, W, 2) float32 ground points, meters, in the frame of the layout.
        materials: (H, W) indices into ``NAMES``.
        scale: (H, 1) px a meter; patterns finer than the raster fade out.
        rng: offsets of the noise.
    """
    table = np.array([[m.coarse, m.middle, m.fine] for m in MATERIALS.values()], np.float32)
    strength = table[materials]
    offsets = rng.uniform(0, TILE, (3, 2))
    noise = [sample_noise(grid, f, o) for f, o in zip((1.6, 9.0, 60.0), offsets)]
    value = sum(strength[..., i] * n for i, n in enumerate(noise))

    # Slabs of 1.2 m with joints, each in its own tone, fade out where a pixel is larger; rows of crop do not.
    pattern = np.zeros(materials.shape, np.float32)
    slabs, rows = materials == NAMES.index("paving"), materials == NAMES.index("crop")
    if slabs.any():
        cell = np.mod(grid / np.float32(1.2), 1.0)
        fade = np.clip((scale - 3) / 6, 0, 1)
        tone = np.sin(np.floor(grid[..., 0] / 1.2) * 12.9898 + np.floor(grid[..., 1] / 1.2) * 78.233)
        pattern += slabs * fade * (0.05 * tone - 0.14 * ((cell < 0.1).any(-1)))
    if rows.any():
        pattern += rows * np.float32(0.16) * np.sin(grid[..., 1] * np.float32(2 * np.pi / 1.4))
    value += pattern
    factor = 1.0 + np.clip(value, -0.6, 0.6)
    # Dry and lush patches differ in hue, not in brightness alone.
    hue = 0.45 * strength[..., 0] * noise[0]
    return np.stack([factor * (1 - hue), factor, factor * (1 + hue)], axis=-1)
