"""A pinhole camera over flat ground.

World frame: meters, x right, y away from the camera, z up; the camera hangs at (0, 0, altitude) and is tilted by
``tilt`` from straight down towards +y. Image frame: px, x right, y down, (0, 0) the outer corner of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """Position and lens.

    Attributes:
        width: px.
        height: px.
        focal: focal length, px.
        tilt: radians from straight down; tilt plus half the vertical field of view stays below 90 degrees.
        altitude: meters above the ground.
    """

    width: int
    height: int
    focal: float
    tilt: float
    altitude: float

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) rows: the image's right, its down, and the direction of view, in the world frame."""
        sin, cos = np.sin(self.tilt), np.cos(self.tilt)
        return np.array([[1.0, 0.0, 0.0], [0.0, -cos, -sin], [0.0, sin, -cos]])

    @property
    def position(self) -> np.ndarray:
        """(3,) meters."""
        return np.array([0.0, 0.0, self.altitude])

    def scaled(self, factor: int) -> Camera:
        """The same view on a raster that is ``factor`` times finer."""
        return Camera(self.width * factor, self.height * factor, self.focal * factor, self.tilt, self.altitude)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project world points.

        Args:
            points: (..., 3) meters.

        Returns:
            (..., 2) px, and (...) depth along the direction of view in meters (clamped to 0.1 m from below).
        """
        local = (points - self.position) @ self.axes.T
        depth = np.maximum(local[..., 2], 0.1)
        center = np.array([self.width / 2, self.height / 2])
        return local[..., :2] * (self.focal / depth)[..., None] + center, depth

    def ground(self, pixels: np.ndarray) -> np.ndarray:
        """Ground points (..., 2) in meters that are seen at image points (..., 2) in px."""
        offset = pixels - np.array([self.width / 2, self.height / 2])
        rays = np.concatenate([offset / self.focal, np.ones_like(offset[..., :1])], axis=-1) @ self.axes
        return rays[..., :2] * (-self.altitude / rays[..., 2:])

    def ground_grid(self) -> np.ndarray:
        """(height, width, 2) float32 meters: the ground point at each pixel's center."""
        depth = self.ground_depth()
        x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.focal * depth[:, None]
        middle = np.column_stack([np.full(self.height, self.width / 2), np.arange(self.height) + 0.5])
        y = np.broadcast_to(self.ground(middle)[:, 1:], x.shape)
        return np.stack([x, y], axis=-1).astype(np.float32)

    def ground_depth(self) -> np.ndarray:
        """(height,) float32 meters along the direction of view to the ground at each row's center."""
        down = (np.arange(self.height) + 0.5 - self.height / 2) / self.focal
        return (self.altitude / (np.cos(self.tilt) + down * np.sin(self.tilt))).astype(np.float32)


def clip_near(polygon: np.ndarray, camera: Camera) -> np.ndarray:
    """Cut away the part of a polygon (N, 3) that lies behind the camera or too near to it; may leave 0 points."""
    near = 0.2 * camera.altitude
    depth = (polygon - camera.position) @ camera.axes[2]
    if (depth >= near).all():
        return polygon
    kept: list[np.ndarray] = []
    for i in range(len(polygon)):
        a, b, da, db = polygon[i - 1], polygon[i], depth[i - 1], depth[i]
        if (da < near) != (db < near):
            kept.append(a + (b - a) * ((near - da) / (db - da)))
        if db >= near:
            kept.append(b)
    return np.array(kept).reshape(-1, 3)


def sample_camera(rng: np.random.Generator, width: int, height: int) -> Camera:
    """Draw a view: vertical, oblique, low or from high up; 4.5 to 13.5 px a meter at the nearest row."""
    mode = rng.choice(4, p=[0.3, 0.47, 0.19, 0.04])
    focal = max(width, height) * rng.uniform(1.1, 1.6)
    half_view = np.arctan(height / 2 / focal)
    tilt = np.deg2rad(rng.uniform(*((0, 9), (15, 34), (34, 48), (0, 35))[mode]))
    tilt = min(tilt, np.deg2rad(64) - half_view)
    nearest = rng.uniform(*((9.6, 12.0), (9.8, 12.8), (10.8, 13.5), (4.5, 7.0))[mode])
    altitude = focal / nearest * np.cos(tilt - half_view) / np.cos(half_view)
    return Camera(width, height, float(focal), float(tilt), float(altitude))
