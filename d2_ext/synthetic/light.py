"""Light, air and sensor: from flat colors to a photograph."""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.synthetic.camera import Camera
from d2_ext.synthetic.mesh import Sun

import cv2
import numpy as np


@dataclass(frozen=True)
class Light:
    """Illumination and air of one image.

    Attributes:
        name: "sun", "clouds", "dusk" or "night".
        sun: light on faces.
        level: overall brightness, 1 by day.
        tint: (3,) BGR factors of the light.
        shade_tint: (3,) BGR factors inside shadows (lit by the sky only).
        haze: share of haze at the farthest pixel, 0..1.
        noise: standard deviation of the sensor's noise at middle gray, 0..255.
    """

    name: str
    sun: Sun
    level: float
    tint: np.ndarray
    shade_tint: np.ndarray
    haze: float
    noise: float


def sample_light(rng: np.random.Generator) -> Light:
    """Draw the time of day and the weather."""
    name = str(rng.choice(["sun", "clouds", "dusk", "night"], p=[0.48, 0.30, 0.12, 0.10]))
    low, high = {"sun": (28, 68), "clouds": (50, 80), "dusk": (15, 26), "night": (50, 80)}[name]
    elevation, azimuth = np.deg2rad(rng.uniform(low, high)), rng.uniform(0, 2 * np.pi)
    cos = np.cos(elevation)
    direction = np.array([cos * np.cos(azimuth), cos * np.sin(azimuth), np.sin(elevation)])
    direct = {"sun": rng.uniform(0.7, 1.1), "clouds": rng.uniform(0, 0.15), "dusk": 0.9, "night": 0.0}[name]
    level = {"sun": (0.9, 1.2), "clouds": (0.75, 1.05), "dusk": (0.75, 1.0), "night": (0.5, 0.72)}[name]
    tint = {
        "sun": (0.96, 1.0, 1.03),
        "clouds": (1.04, 1.0, 0.97),
        "dusk": (0.82, 0.97, 1.14),
        "night": (1.12, 0.98, 0.9),
    }
    balance = np.array(tint[name]) * rng.normal(1.0, 0.015, 3)
    haze = rng.uniform(0.1, 0.3) if rng.random() < 0.15 else rng.uniform(0.0, 0.06)
    noise = rng.uniform(4, 8) if name == "night" else rng.uniform(1.0, 3.5)
    shade = np.array([1.1, 1.0, 0.92])
    return Light(name, Sun(direction, direct, 0.55), rng.uniform(*level), balance, shade, haze, noise)


COARSE = 4  # light on the ground is smooth: it is computed on every fourth pixel


def ground_light(grid: np.ndarray, lamps: np.ndarray, beams: np.ndarray) -> np.ndarray:
    """Light (H, W, 3) that lamps throw at night, 0 where there is none.

    Args:
        grid: (H, W, 2) float32 ground points, meters.
        lamps: (K, 7) x, y, z, BGR, radius of the glow; those below 2.4 m light nothing.
        beams: (B, 3) x, y in meters and heading of headlights.
    """
    height, width = grid.shape[:2]
    grid = np.ascontiguousarray(grid[::COARSE, ::COARSE])
    light = np.zeros((*grid.shape[:2], 3), np.float32)
    for lamp in lamps[lamps[:, 2] > 2.4].astype(np.float32):
        distance = ((grid - lamp[:2]) ** 2).sum(-1)
        light += 1.3 * np.exp(-distance / (1.1 * lamp[2] + 1.2) ** 2)[..., None] * lamp[3:6]
    for x, y, heading in beams.astype(np.float32):
        dx, dy, cos, sin = grid[..., 0] - x, grid[..., 1] - y, np.cos(heading), np.sin(heading)
        ahead = np.maximum(dx * cos + dy * sin, 0)
        aside = (dy * cos - dx * sin) / (0.9 + 0.22 * ahead)
        light += (np.exp(-aside * aside - ahead / 4.5) * (ahead > 0))[..., None]
    return cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)


def lamp_glow(shape: tuple[int, int], camera: Camera, lamps: np.ndarray) -> np.ndarray:
    """The lamps themselves (H, W, 3), 0..255, with a halo; arguments as for ``ground_light``."""
    glow = np.zeros((*shape, 3), np.float32)
    for lamp in lamps:
        (center,), (depth,) = camera.project(lamp[None, :3])
        radius = max(0.7, lamp[6] * camera.focal / depth * 0.6)
        if -9 < center[0] < shape[1] + 9 and -9 < center[1] < shape[0] + 9:
            point = np.rint(center * 16 - 8).astype(int).tolist()
            cv2.circle(glow, point, int(radius * 16), lamp[3:6].tolist(), -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(glow, (0, 0), 0.7) * 170 + cv2.GaussianBlur(glow, (0, 0), 3.0) * 110


def expose(
    rng: np.random.Generator, image: np.ndarray, light: Light, depth: np.ndarray, lamps: np.ndarray | None
) -> np.ndarray:
    """Haze, lens, sensor: from lit colors (H, W, 3) float32, 0..255, to uint8.

    Args:
        rng: of the image.
        image: colors under full light.
        light: of the scene.
        depth: (H, 1) meters along the view.
        lamps: (H, W, 3) glow added before the lens, or None.
    """
    # Light and haze: the farther, the more.
    height, width = image.shape[:2]
    out = image * (light.tint * light.level).astype(np.float32)
    if lamps is not None:
        out += lamps
    far = (depth - depth.min()) / max(float(np.ptp(depth)), 0.35 * float(depth.min()))
    veil = (light.haze * (0.4 + 0.6 * far))[..., None].astype(np.float32)
    fog = np.array([205, 200, 194], np.float32) * np.float32(min(light.level, 1.0))
    out = out * (1 - veil) + fog * veil

    # The lens: soft always, out of focus or moved by the drone sometimes, and darker towards the corners.
    sigma = rng.uniform(0.35, 0.6) if rng.random() < 0.82 else rng.uniform(0.7, 1.1)
    out = cv2.GaussianBlur(out, (0, 0), sigma)
    if rng.random() < 0.1:
        length, angle = rng.uniform(1.5, 4.0), rng.uniform(0, np.pi)
        kernel = np.zeros((7, 7), np.float32)
        step = np.array([np.cos(angle), np.sin(angle)]) * length / 2 * 16
        start, end = np.rint(48 - step).astype(int).tolist(), np.rint(48 + step).astype(int).tolist()
        cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_8, 4)
        out = cv2.filter2D(out, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    out *= (1 - np.float32(rng.uniform(0.0, 0.2)) * (x * x + y * y) / 2)[..., None]

    # The sensor. Shot noise grows with the light, read noise does not; color noise is coarser than
    # the raster.
    gray = rng.standard_normal((height, width, 1), np.float32)
    color = cv2.resize(rng.standard_normal((height // 2, width // 2, 3), np.float32), (width, height))
    out += (gray + 0.7 * color) * np.float32(light.noise) * np.sqrt(np.clip(out, 8, 255) / 128)
    contrast = np.float32(rng.uniform(0.9, 1.12))
    return np.clip((out - 110) * contrast + 110, 0, 255).astype(np.uint8)
