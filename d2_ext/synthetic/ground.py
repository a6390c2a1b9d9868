"""The ground of a scene as vector shapes in the frame of the layout, and the places where things may stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from d2_ext.synthetic.camera import Camera, clip_near
from d2_ext.synthetic.mesh import SUBPIXEL_BITS, Mesh, to_raster
from d2_ext.synthetic.textures import MATERIALS, NAMES

import cv2
import numpy as np

WHITE, YELLOW = (205, 208, 208), (80, 178, 205)


@dataclass(frozen=True)
class Slot:
    """A place for one thing.

    Attributes:
        u: meters, layout frame.
        v: meters, layout frame.
        heading: radians, layout frame.
        kinds: chance of each kind; what is missing to 1 stays free.
    """

    u: float
    v: float
    heading: float
    kinds: dict[str, float]


class Building(NamedTuple):
    """A placed house: its mesh, its middle ``x``, ``y`` in the frame of the world, length and width; meters."""

    mesh: Mesh
    x: float
    y: float
    length: float
    width: float


class Ground:
    """Canvas and slots.

    Attributes:
        camera: of the fine raster.
        canvas: (H, W, 4) uint8 BGR and identity 0.
        materials: (H, W) uint8 indices of ground materials.
        extent: u0, u1, v0, v1 in meters: the seen ground lies inside.
        slots: places for objects and distractors.
        buildings: houses, in the frame of the world.
    """

    def __init__(self, camera: Camera, rng: np.random.Generator) -> None:
        self.camera = camera
        self.rng = rng
        self.canvas = np.zeros((camera.height, camera.width, 4), np.uint8)
        self.materials = np.zeros((camera.height, camera.width), np.uint8)
        self.angle = float(rng.uniform(0, 2 * np.pi))
        self.origin = camera.ground(np.array([camera.width / 2, camera.height / 2]))
        corners = np.array([[0, 0], [camera.width, 0], [camera.width, camera.height], [0, camera.height]])
        local = self.to_layout(camera.ground(corners.astype(float)))
        (u0, v0), (u1, v1) = local.min(0), local.max(0)
        self.extent = (float(u0), float(u1), float(v0), float(v1))
        self.slots: list[Slot] = []
        self.buildings: list[Building] = []
        self._colors: dict[str, np.ndarray] = {}

    def to_world(self, uv: np.ndarray) -> np.ndarray:
        """Layout points (..., 2) to world points (..., 2)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return uv @ np.array([[cos, sin], [-sin, cos]], uv.dtype) + self.origin.astype(uv.dtype)

    def to_layout(self, xy: np.ndarray) -> np.ndarray:
        """World points (..., 2) to layout points (..., 2)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return (xy - self.origin.astype(xy.dtype)) @ np.array([[cos, -sin], [sin, cos]], xy.dtype)

    def color(self, material: str) -> np.ndarray:
        """(3,) BGR of a material in this image."""
        if material not in self._colors:
            choices = MATERIALS[material].colors
            base = np.array(choices[self.rng.integers(len(choices))], float)
            self._colors[material] = np.clip(base * self.rng.uniform(0.85, 1.12) + self.rng.normal(0, 1.2, 3), 0, 255)
        return self._colors[material]

    def fill(self, polygon: np.ndarray, material: str, *, tone: float = 1.0) -> None:
        """Cover a polygon (N, 2) of the layout frame with a material."""
        points = self._raster(polygon)
        if len(points):
            color = np.clip(self.color(material) * tone, 0, 255)
            cv2.fillPoly(self.canvas, [points], (*color, 0), cv2.LINE_8, SUBPIXEL_BITS)
            cv2.fillPoly(self.materials, [points], NAMES.index(material), cv2.LINE_8, SUBPIXEL_BITS)

    def mark(self, polygon: np.ndarray, color: tuple[float, ...]) -> None:
        """Paint a polygon (N, 2) onto whatever material is there."""
        points = self._raster(polygon)
        if len(points):
            cv2.fillPoly(self.canvas, [points], (*color, 0), cv2.LINE_8, SUBPIXEL_BITS)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], width: float, color: tuple[float, ...]
    ) -> None:
        """Paint a straight stripe."""
        a, b = np.array(start), np.array(end)
        side = np.array([a[1] - b[1], b[0] - a[0]]) / max(np.linalg.norm(b - a), 1e-9) * width / 2
        self.mark(np.array([a - side, b - side, b + side, a + side]), color)

    def cover(self, material: str) -> None:
        """Cover everything."""
        u0, u1, v0, v1 = self.extent
        self.fill(rectangle(u0 - 5, u1 + 5, v0 - 5, v1 + 5), material)

    def _raster(self, polygon: np.ndarray) -> np.ndarray:
        flat = np.column_stack([self.to_world(np.asarray(polygon, float)), np.zeros(len(polygon))])
        clipped = clip_near(flat, self.camera)
        return to_raster(self.camera.project(clipped)[0]) if len(clipped) >= 3 else np.zeros((0, 2), np.int32)


def rectangle(u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
    """(4, 2) corners."""
    return np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]])


def blob(rng: np.random.Generator, u: float, v: float, radius: float) -> np.ndarray:
    """(16, 2) corners of a rounded, irregular patch."""
    angle = np.arange(16) * np.pi / 8
    r = radius * (1 + 0.25 * np.sin(angle * 2 + rng.uniform(0, 6)) + 0.15 * np.sin(angle * 3 + rng.uniform(0, 6)))
    return np.column_stack([u + r * np.cos(angle) * rng.uniform(0.7, 1.4), v + r * np.sin(angle)])
