"""Small solids of flat faces, and how they and their shadows are drawn.

A mesh is a list of quadrilaterals in drawing order: since the camera is always above, listing parts from the bottom
up and leaving out faces that look away is enough to hide what is hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from d2_ext.synthetic.camera import Camera

import cv2
import numpy as np

SUBPIXEL_BITS = 4
Color = tuple[float, float, float]  # BGR, 0..255
Point = tuple[float, float, float]  # x, y, z in meters


class Sun(NamedTuple):
    """Light of a scene on faces.

    Attributes:
        direction: (3,) unit vector towards the sun.
        direct: share of sunlight; 0 under clouds and at night.
        diffuse: share of light from everywhere.
    """

    direction: np.ndarray
    direct: float
    diffuse: float

    def shade(self, normals: np.ndarray) -> np.ndarray:
        """Brightness (N,) of faces with unit normals (N, 3), relative to sunlit ground."""
        facing = np.maximum(normals @ self.direction, 0.0)
        sky = 0.7 + 0.3 * normals[:, 2]  # walls see half of the sky only
        full = self.direct * self.direction[2] + self.diffuse
        return (self.direct * facing + self.diffuse * sky) / full


@dataclass(frozen=True)
class Mesh:
    """Faces and balls of one thing.

    Attributes:
        quads: (F, 4, 3) meters; corners counter-clockwise seen from outside.
        colors: (F, 3) BGR 0..255.
        two_sided: (F,) bool; drawn from both sides.
        parts: (F,) int; faces of one convex part, whose shadow is one hull.
        balls: (B, 4) x, y, z, radius in meters, in drawing order: leaves.
        ball_colors: (B, 3) BGR.
        lamps: (K, 7) x, y, z in meters, BGR 0..1, radius in meters: what glows at night.
    """

    quads: np.ndarray
    colors: np.ndarray
    two_sided: np.ndarray
    parts: np.ndarray
    balls: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    ball_colors: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    lamps: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))

    def placed(self, x: float, y: float, heading: float) -> Mesh:
        """Turn by ``heading`` radians (counter-clockwise from above) and move to (x, y)."""
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        move = np.array([x, y, 0.0])
        balls, lamps = self.balls.copy(), self.lamps.copy()
        balls[:, :3] = balls[:, :3] @ turn + move
        lamps[:, :3] = lamps[:, :3] @ turn + move
        quads = self.quads @ turn + move
        return Mesh(quads, self.colors, self.two_sided, self.parts, balls, self.ball_colors, lamps)

    def bounds(self, camera: Camera) -> np.ndarray:
        """(4,) x0, y0, x1, y1 px: box around everything, inside the image or not."""
        points, _ = camera.project(self.quads.reshape(-1, 3))
        low, high = [points.min(0)], [points.max(0)]
        if len(self.balls):
            centers, depth = camera.project(self.balls[:, :3])
            radius = (self.balls[:, 3] * camera.focal / depth)[:, None]
            low.append((centers - radius).min(0))
            high.append((centers + radius).max(0))
        return np.concatenate([np.min(low, axis=0), np.max(high, axis=0)])


class MeshBuilder:
    """Collects parts from the bottom up; every method adds one part and returns its faces (F, 4, 3)."""

    def __init__(self) -> None:
        self._quads: list[np.ndarray] = []
        self._colors: list[np.ndarray] = []
        self._two_sided: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self.lamps: list[tuple[float, ...]] = []

    def add(self, quads: np.ndarray, colors: np.ndarray | Color, *, two_sided: bool = False) -> np.ndarray:
        """Add faces (F, 4, 3) with one color or one a face."""
        count = len(quads)
        self._quads.append(quads)
        self._colors.append(np.broadcast_to(np.asarray(colors, float), (count, 3)))
        self._two_sided.append(np.full(count, two_sided))
        self._parts.append(np.full(count, len(self._parts)))
        return quads

    def frustum(
        self, base: tuple[float, ...], top: tuple[float, ...], z: tuple[float, float], color: np.ndarray | Color
    ) -> np.ndarray:
        """Box between two rectangles (x0, x1, y0, y1): faces front (+x), left (+y), rear, right, top."""
        return self.add(frustum_quads(base, top, z), color)

    def box(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], color: Color) -> np.ndarray:
        """Upright box."""
        return self.frustum((*x, *y), (*x, *y), z, color)

    def extrude(self, profile: np.ndarray, half_width: float, edge_colors: np.ndarray, side: Color) -> np.ndarray:
        """Convex side view (N, 2) of (x, z), clockwise seen from the right, widened to both sides of y = 0."""
        n = len(profile)
        left = np.column_stack([profile[:, 0], np.full(n, half_width), profile[:, 1]])
        right = left * np.array([1.0, -1.0, 1.0])
        nxt = np.roll(np.arange(n), -1)
        rims = np.stack([left[nxt], left, right, right[nxt]], axis=1)
        fan = [(0, i, min(i + 1, n - 1), min(i + 2, n - 1)) for i in range(1, n - 1, 2)]
        sides = [left[list(f)] for f in fan] + [right[list(f)[::-1]] for f in fan]
        colors = np.concatenate([edge_colors, np.tile(np.asarray(side, float), (len(sides), 1))])
        quads = np.concatenate([rims, np.stack(sides)])
        self.add(quads, colors)
        return rims

    def bar(self, start: Point, end: Point, width: float, color: Color) -> None:
        """Thin rod as two crossed faces."""
        a, b = np.asarray(start, float), np.asarray(end, float)
        along = (b - a) / _length(b - a)
        s = _cross(along, (0.0, 0.0, 1.0) if abs(along[2]) < 0.8 else (1.0, 0.0, 0.0))
        s *= width / 2 / _length(s)
        t = _cross(along, s)
        faces = [[a - s, b - s, b + s, a + s], [a - t, b - t, b + t, a + t]]
        self.add(np.array(faces), color, two_sided=True)

    def disc(self, center: Point, radius: float, color: Color, *, sides: int = 6) -> None:
        """Upright disc that faces +-y (a wheel); sides must be even."""
        angle = np.arange(sides) * 2 * np.pi / sides
        ring = np.asarray(center) + radius * np.column_stack([np.cos(angle), np.zeros(sides), np.sin(angle)])
        self.add(fan_quads(ring), color, two_sided=True)

    def prism(self, center: Point, radius: float, height: float, side: Color, top: Color, *, sides: int = 8) -> None:
        """Upright prism that stands on ``center``; sides must be even."""
        angle = np.arange(sides) * 2 * np.pi / sides
        low = np.asarray(center) + radius * np.column_stack([np.cos(angle), np.sin(angle), np.zeros(sides)])
        high = low + np.array([0.0, 0.0, height])
        nxt = np.roll(np.arange(sides), -1)
        walls = np.stack([low, low[nxt], high[nxt], high], axis=1)
        roof = fan_quads(high)
        colors = np.concatenate([np.tile(side, (sides, 1)), np.tile(top, (len(roof), 1))]).astype(float)
        self.add(np.concatenate([walls, roof]), colors)

    def build(self, balls: np.ndarray | None = None, ball_colors: np.ndarray | None = None) -> Mesh:
        """The finished mesh."""
        return Mesh(
            np.concatenate(self._quads),
            np.clip(np.concatenate(self._colors), 0, 255),
            np.concatenate(self._two_sided),
            np.concatenate(self._parts),
            np.zeros((0, 4)) if balls is None else balls,
            np.zeros((0, 3)) if ball_colors is None else ball_colors,
            np.array(self.lamps, float).reshape(-1, 7),
        )


def frustum_quads(base: tuple[float, ...], top: tuple[float, ...], z: tuple[float, float]) -> np.ndarray:
    """(5, 4, 3) faces front, left, rear, right, top between rectangles (x0, x1, y0, y1) at two heights."""
    corners = []
    for (x0, x1, y0, y1), height in ((base, z[0]), (top, z[1])):
        corners.append(np.array([[x1, y0, height], [x1, y1, height], [x0, y1, height], [x0, y0, height]]))
    low, high = corners
    faces = [[low[i], low[(i + 1) % 4], high[(i + 1) % 4], high[i]] for i in range(4)]
    return np.array([*faces, high])


def fan_quads(ring: np.ndarray) -> np.ndarray:
    """Cut a convex polygon (N, 3), N even, into (N / 2 - 1, 4, 3) quadrilaterals."""
    return np.stack([ring[[0, i, i + 1, i + 2]] for i in range(1, len(ring) - 1, 2)])


def inset(quad: np.ndarray, across: float, along: float, *, lift: float = 0.01) -> np.ndarray:
    """Shrink a face (4, 3) around its center, horizontally and upwards; lifted off the face by a hair."""
    center = quad.mean(0)
    u, v = (quad[1] + quad[2] - quad[0] - quad[3]) / 4, (quad[2] + quad[3] - quad[0] - quad[1]) / 4
    normal = _cross(u, v)
    center = center + normal * (lift / max(_length(normal), 1e-9))
    u, v = across * u, along * v
    return center + np.array([-u - v, u - v, u + v, v - u])


def _cross(a: np.ndarray | Point, b: np.ndarray | Point) -> np.ndarray:
    """Cross product of two single vectors, without the overhead of ``np.cross``."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _length(a: np.ndarray) -> float:
    return math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])


def normals_of(quads: np.ndarray) -> np.ndarray:
    """Unit outward normals (F, 3); of the diagonals, so that a repeated corner does no harm."""
    a, b = quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]
    normal = a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]
    return normal / np.maximum(np.sqrt((normal * normal).sum(1, keepdims=True)), 1e-9)


def to_raster(points: np.ndarray) -> np.ndarray:
    """Image points to OpenCV's fixed-point integers (pixel centers at whole numbers there)."""
    return np.rint(np.clip(points - 0.5, -8000, 8000) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def draw(canvas: np.ndarray, mesh: Mesh, camera: Camera, sun: Sun, ident: int, dim: float = 1.0) -> None:
    """Draw a mesh.

    Args:
        canvas: (H, W, 4) uint8, BGR and identity; changed in place.
        mesh: placed in the world frame.
        camera: of the canvas's raster.
        sun: light on the faces.
        ident: written to the fourth channel, 1..255.
        dim: brightness of the spot it stands on (shadows of others).
    """
    normals = normals_of(mesh.quads)
    seen = mesh.two_sided | (((camera.position - mesh.quads.mean(1)) * normals).sum(1) > 0)
    normals = np.where((mesh.two_sided & (normals[:, 2] < 0))[:, None], -normals, normals)
    colors = np.clip(mesh.colors * (sun.shade(normals) * dim)[:, None], 0, 255)
    points = to_raster(camera.project(mesh.quads)[0])
    for i in np.flatnonzero(seen):
        b, g, r = colors[i]
        cv2.fillConvexPoly(canvas, points[i], (b, g, r, ident), cv2.LINE_8, SUBPIXEL_BITS)
    if len(mesh.balls):
        centers, depth = camera.project(mesh.balls[:, :3])
        radius = to_raster(mesh.balls[:, 3] * camera.focal / depth + 0.5)
        for center, r, color in zip(to_raster(centers), radius, np.clip(mesh.ball_colors * dim, 0, 255).tolist()):
            cv2.circle(canvas, center.tolist(), int(r), (*color, ident), -1, cv2.LINE_8, SUBPIXEL_BITS)


def silhouette_area(mesh: Mesh, camera: Camera) -> int:
    """Pixels of the raster that the faces would cover with nothing in front and no image border."""
    points = camera.project(mesh.quads)[0]
    low = np.floor(points.min((0, 1))) - 1
    width, height = (np.ceil(points.max((0, 1))) - low + 2).astype(int)
    mask = np.zeros((height, width), np.uint8)
    for quad in to_raster(points - low):
        cv2.fillConvexPoly(mask, quad, 1, cv2.LINE_8, SUBPIXEL_BITS)
    return int(np.count_nonzero(mask))


def draw_shadow(mask: np.ndarray, mesh: Mesh, camera: Camera, sun: Sun) -> None:
    """Draw the shadow that a mesh throws onto the ground as 255 into (H, W) uint8."""
    rim = np.array([[np.cos(a), np.sin(a), 0.0] for a in np.arange(8) * np.pi / 4])
    balls = mesh.balls[::2]  # leaves overlap: half of them, a third larger, throw the same shadow
    leaves = (balls[:, None, :3] + 1.3 * balls[:, None, 3:] * rim).reshape(-1, 3)
    flat = np.concatenate([mesh.quads.reshape(-1, 3), leaves])
    flat[:, :2] -= flat[:, 2:] * (sun.direction[:2] / sun.direction[2])
    flat[:, 2] = 0.0
    points = to_raster(camera.project(flat)[0])
    ends = np.flatnonzero(np.diff(mesh.parts)) * 4 + 4
    corners = 4 * len(mesh.quads)
    for outline in np.split(points, [*ends, *range(corners, len(points), 8)]):
        cv2.fillConvexPoly(mask, cv2.convexHull(outline), 255, cv2.LINE_8, SUBPIXEL_BITS)
