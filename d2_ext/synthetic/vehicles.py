"""Cars and vans. Local frame: meters, x forward, y left, z up, the middle of the footprint at (0, 0)."""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.synthetic.mesh import Color, Mesh, MeshBuilder, inset

import numpy as np

# Everything that is painted draws from this one palette, things that are no object too: color must not tell classes.
PAINT: tuple[tuple[Color, float], ...] = (
    ((236, 237, 238), 0.26),  # white
    ((190, 192, 192), 0.10),  # silver
    ((40, 39, 38), 0.07),  # black
    ((112, 62, 34), 0.07),  # dark blue
    ((206, 138, 58), 0.12),  # light blue
    ((40, 38, 184), 0.15),  # red
    ((150, 186, 208), 0.05),  # beige
    ((72, 122, 52), 0.07),  # green
    ((52, 186, 232), 0.11),  # yellow
)
GLASS: Color = (46, 38, 32)
TIRE: Color = (30, 30, 30)
HEADLIGHT = (0.75, 0.95, 1.0)
TAILLIGHT = (0.1, 0.12, 0.95)


def paint(rng: np.random.Generator) -> np.ndarray:
    """(3,) BGR: one color of the palette, slightly varied."""
    weights = np.array([w for _, w in PAINT])
    base = np.array(PAINT[rng.choice(len(PAINT), p=weights / weights.sum())][0])
    return np.clip(base * rng.uniform(0.88, 1.1) + rng.normal(0, 5, 3), 8, 250)


def glass(rng: np.random.Generator) -> np.ndarray:
    """(3,) BGR: dark, more or less of the sky in it."""
    return np.array(GLASS) + rng.uniform(0, 16) * np.array([1.15, 1.0, 0.85])


@dataclass(frozen=True)
class CarShape:
    """Proportions of a car body; fractions of the length, from the rear (-0.5) to the front (0.5)."""

    cabin: tuple[float, float]
    rear_slope: float
    front_slope: float
    waist: float
    roof: float


CAR_SHAPES = {
    "sedan": CarShape((-0.36, 0.20), 0.13, 0.15, 0.86, 1.42),
    "hatch": CarShape((-0.47, 0.22), 0.07, 0.15, 0.88, 1.46),
    "estate": CarShape((-0.48, 0.19), 0.05, 0.14, 0.88, 1.46),
    "suv": CarShape((-0.47, 0.19), 0.06, 0.12, 1.02, 1.72),
}


def make_car(rng: np.random.Generator) -> Mesh:
    """A car: hood, windshield, roof, rear window, and a trunk if it is a sedan."""
    kind = str(rng.choice(list(CAR_SHAPES), p=[0.38, 0.27, 0.13, 0.22]))
    shape = CAR_SHAPES[kind]
    length = rng.uniform(*{"sedan": (3.7, 4.1), "hatch": (3.3, 3.6), "estate": (3.7, 4.1), "suv": (3.6, 4.0)}[kind])
    half = rng.uniform(0.86, 0.95)
    body = paint(rng)
    b = MeshBuilder()
    x0, x1 = -length / 2, length / 2
    hull = b.frustum((x0, x1, -half, half), (x0 + 0.1, x1 - 0.12, -half * 0.93, half * 0.93), (0.2, shape.waist), body)
    _add_wheels(b, length * 0.3, half)
    _add_lights(b, hull[0], hull[2], shape.waist * 0.72)
    hood = np.array([[x1 - 0.25, y, shape.waist + 0.01] for y in (-half * 0.8, half * 0.8)])
    b.add(np.concatenate([hood, hood[::-1] - [0.06, 0, 0]])[None], body * 0.75, two_sided=True)

    # The cabin, with panes on its four sides.
    base = (shape.cabin[0] * length, shape.cabin[1] * length, -half * 0.92, half * 0.92)
    top = (base[0] + shape.rear_slope * length, base[1] - shape.front_slope * length, -half * 0.72, half * 0.72)
    pane, tint = glass(rng), rng.uniform(0.85, 1.1)
    faces = b.frustum(base, top, (shape.waist, shape.roof), body * 0.93)
    panes = np.stack([inset(faces[0], 0.9, 0.9), inset(faces[1], 0.9, 0.76), inset(faces[2], 0.86, 0.8)])
    b.add(np.concatenate([panes, inset(faces[3], 0.9, 0.76)[None]]), pane * tint)
    roof = faces[4]
    b.add(roof[None], np.clip(body * 1.04, 0, 255))
    extra = rng.random()
    if extra < 0.18:  # glass roof
        b.add(inset(roof, 0.75, 0.5)[None], pane * 0.9)
    elif extra < 0.3:  # rails
        for y in (-half * 0.6, half * 0.6):
            b.box((top[0] + 0.1, top[1] - 0.1), (y - 0.04, y + 0.04), (shape.roof, shape.roof + 0.08), TIRE)
    elif extra < 0.34:  # taxi sign
        mid = (top[0] + top[1]) / 2
        b.box((mid - 0.1, mid + 0.1), (-0.3, 0.3), (shape.roof, shape.roof + 0.16), (90, 225, 250))
    return b.build()


def make_van(rng: np.random.Generator) -> Mesh:
    """A van: long and high, short nose, one long roof without a rear window; or a cab with a box."""
    return _make_box_van(rng) if rng.random() < 0.25 else _make_panel_van(rng)


def _make_panel_van(rng: np.random.Generator) -> Mesh:
    """One body: the side's outline, drawn across the width."""
    length, half, height = rng.uniform(4.8, 5.3), rng.uniform(1.02, 1.1), rng.uniform(2.3, 2.7)
    body, pane = paint(rng), glass(rng)
    x0, x1 = -length / 2, length / 2
    nose, foot, head = rng.uniform(1.0, 1.2), rng.uniform(0.45, 0.75), rng.uniform(1.15, 1.4)
    profile = np.array(
        [[x0, 0.25], [x0, height], [x1 - head, height], [x1 - foot, nose], [x1, nose - 0.15], [x1, 0.25]]
    )
    tones = np.array([0.97, 1.03, 0.95, 0.97, 0.95, 0.4])
    b = MeshBuilder()
    rims = b.extrude(profile, half, np.clip(body * tones[:, None], 0, 255), tuple(body * 0.95))
    _add_wheels(b, length * 0.31, half)
    _add_lights(b, rims[4], rims[0], 0.85)
    b.add(inset(rims[2], 0.9, 0.88)[None], pane)  # windshield
    ends = [(x1 - head - 0.1, x1 - head - 0.95)]
    if rng.random() < 0.4:  # for passengers: windows along the whole side
        steps = np.linspace(x1 - head - 1.15, x0 + 0.25, 4)
        ends += list(zip(steps[:-1] - 0.06, steps[1:] + 0.06))
        b.add(inset(rims[0], 0.55, 0.75)[None], pane)  # rear window, seen from low views only
    for front, rear in ends:
        _add_side_panes(b, (rear, front), (nose + 0.15, height - 0.3), half, pane)

    # Something on the roof, which is most of what a drone sees.
    front, style = x1 - head, rng.choice(3, p=[0.5, 0.3, 0.2])
    if style == 0:  # ribs along the roof
        for y in np.linspace(-0.62, 0.62, 4) * half:
            strip = np.array(
                [[x0 + 0.3, y - 0.05], [front - 0.3, y - 0.05], [front - 0.3, y + 0.05], [x0 + 0.3, y + 0.05]]
            )
            b.add(np.column_stack([strip, np.full(4, height + 0.01)])[None], body * 0.8)
    elif style == 1:  # air conditioner or hatch
        mid = rng.uniform(0.3, 0.6) * (front - x0) + x0
        b.box((mid - 0.5, mid + 0.5), (-0.45, 0.45), (height, height + 0.18), tuple(np.clip(body * 0.86, 0, 255)))
    else:  # ladder
        for y in (-0.25, 0.25):
            b.bar((x0 + 0.2, y, height + 0.1), (front - 0.2, y, height + 0.1), 0.1, (150, 160, 165))
        for at in np.linspace(x0 + 0.4, front - 0.4, 6):
            b.bar((at, -0.25, height + 0.1), (at, 0.25, height + 0.1), 0.1, (150, 160, 165))
    return b.build()


def _make_box_van(rng: np.random.Generator) -> Mesh:
    """A cab, and a white box behind it that is wider and higher."""
    length, half, height = rng.uniform(4.8, 5.3), rng.uniform(1.0, 1.08), rng.uniform(2.5, 2.9)
    cab, box, pane = paint(rng), paint(rng) * 0.35 + np.array([230, 230, 230]) * 0.65, glass(rng)
    x0, x1 = -length / 2, length / 2
    wall = x1 - rng.uniform(1.75, 2.0)
    b = MeshBuilder()
    profile = np.array([[wall, 0.3], [wall, 2.0], [x1 - 0.75, 2.0], [x1 - 0.15, 1.1], [x1, 0.95], [x1, 0.3]])
    rims = b.extrude(profile, half * 0.93, np.tile(cab, (6, 1)), tuple(cab * 0.95))
    b.add(inset(rims[2], 0.9, 0.88)[None], pane)
    _add_side_panes(b, (wall + 0.2, x1 - 0.85), (1.15, 1.8), half * 0.93, pane)
    _add_wheels(b, length * 0.31, half)
    faces = b.box((x0, wall - 0.12), (-half, half), (0.55, height), tuple(box))
    _add_lights(b, rims[5], faces[2], 0.8)
    b.add(np.stack([inset(faces[4], 0.94, 0.94), inset(faces[4], 0.9, 0.9, lift=0.02)]), np.stack([box * 0.82, box]))
    return b.build()


def _add_side_panes(
    b: MeshBuilder, x: tuple[float, float], z: tuple[float, float], half: float, pane: np.ndarray
) -> None:
    corners = np.array([[x[0], z[0]], [x[1], z[0]], [x[1], z[1]], [x[0], z[1]]])
    for side in (-1, 1):
        quad = np.column_stack([corners[:, 0], np.full(4, side * (half + 0.01)), corners[:, 1]])
        b.add((quad if side < 0 else quad[::-1])[None], pane)


def _add_wheels(b: MeshBuilder, axle: float, half: float) -> None:
    angle = np.arange(6) * np.pi / 3
    rim = 0.33 * np.column_stack([np.cos(angle), np.zeros(6), np.sin(angle)])
    for x in (-axle, axle):
        for side in (-1, 1):
            ring = rim + np.array([x, side * (half + 0.01), 0.34])
            ring = ring if side < 0 else ring[::-1]
            b.add(np.stack([ring[[0, 1, 2, 3]], ring[[0, 3, 4, 5]]]), TIRE)


def _add_lights(b: MeshBuilder, front: np.ndarray, rear: np.ndarray, z: float) -> None:
    """Two headlights and two tail lights, near the outer edges of the front and the rear face."""
    for face, color, lamp, radius in ((front, (225, 240, 245), HEADLIGHT, 0.5), (rear, (40, 38, 170), TAILLIGHT, 0.32)):
        x, half = float(face[:, 0].mean()), float(np.abs(face[:, 1]).max())
        sign = 1.0 if x > 0 else -1.0
        for y in (-0.7 * half, 0.7 * half):
            low, high = sorted((y - 0.2 * half, y + 0.2 * half))
            quad = [[x, low, z - 0.1], [x, high, z - 0.1], [x, high, z + 0.12], [x, low, z + 0.12]]
            b.add(np.array(quad)[None] + [sign * 0.08, 0, 0], color, two_sided=True)
            b.lamps.append((x, y, z, *lamp, radius))
