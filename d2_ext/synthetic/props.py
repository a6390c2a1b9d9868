"""Things that are no objects: buildings, trees, lamps, and distractors in the colors and sizes of objects."""

from __future__ import annotations

from d2_ext.synthetic.mesh import Mesh, MeshBuilder, inset
from d2_ext.synthetic.vehicles import glass, paint

import numpy as np

LEAVES = np.array([[46, 92, 62], [38, 78, 66], [52, 106, 92], [34, 70, 50], [58, 104, 124]], float)
WALLS = np.array(
    [[150, 172, 190], [176, 184, 190], [122, 138, 158], [96, 112, 150], [196, 200, 202], [110, 116, 120]], float
)
ROOFS = np.array([[118, 120, 122], [86, 92, 140], [142, 146, 148], [78, 82, 86], [168, 172, 172], [112, 96, 80]], float)


def make_building(rng: np.random.Generator, length: float, width: float, height: float) -> Mesh:
    """A flat-roofed house with windows, a parapet, and vents and boxes on the roof."""
    b = MeshBuilder()
    wall, roof = WALLS[rng.integers(len(WALLS))], ROOFS[rng.integers(len(ROOFS))] * rng.uniform(0.85, 1.1)
    faces = b.box((-length / 2, length / 2), (-width / 2, width / 2), (0.0, height), tuple(wall))
    pane = glass(rng)
    rows = max(1, int(height / 3.2))
    for face, span in zip(faces[:4], (width, length, width, length)):
        columns = max(1, int(span / 3.0))
        u, v = face[1] - face[0], face[3] - face[0]
        windows = []
        for i in range(columns):
            for j in range(rows):
                corners = [(i + 0.25, j + 0.3), (i + 0.75, j + 0.3), (i + 0.75, j + 0.78), (i + 0.25, j + 0.78)]
                windows.append([face[0] + u * (s / columns) + v * (t / rows) for s, t in corners])
        b.add(np.array(windows), pane * rng.uniform(0.8, 1.3))
        if rng.random() < 0.5:  # lit at night
            spot = face.mean(0)
            b.lamps.append((spot[0], spot[1], min(2.5, height / 2), 0.35, 0.65, 0.9, 1.1))
    b.add(inset(faces[4], 1.0, 1.0)[None], np.clip(roof * 1.18, 0, 255))
    b.add(inset(faces[4], 1 - 0.8 / width, 1 - 0.8 / length, lift=0.02)[None], roof)
    for _ in range(rng.integers(1, 7)):
        x, y = rng.uniform(-0.38, 0.38) * length, rng.uniform(-0.38, 0.38) * width
        sx, sy = rng.uniform(0.4, 1.6, 2)
        z = (height, height + rng.uniform(0.4, 1.2))
        color = paint(rng) if rng.random() < 0.5 else roof * rng.uniform(0.7, 1.3)
        b.box((x - sx, x + sx), (y - sy, y + sy), z, tuple(np.clip(color, 0, 255)))
    return b.build()


def make_tree(rng: np.random.Generator) -> Mesh:
    """A broad-leaved tree."""
    radius = rng.uniform(1.3, 2.9)
    return _leaves(rng, radius, 0.8 * radius + rng.uniform(0.4, 1.4), trunk=True)


def make_bush(rng: np.random.Generator) -> Mesh:
    """A bush of the size of a person or a small car."""
    radius = rng.uniform(0.4, 1.1)
    return _leaves(rng, radius, radius * 0.6, trunk=False)


def _leaves(rng: np.random.Generator, radius: float, middle: float, *, trunk: bool) -> Mesh:
    """A crown: limbs around the middle, leaves around the limbs; lighter towards the top and outside."""
    b = MeshBuilder()
    b.box((-0.12, 0.12), (-0.12, 0.12), (0.0, middle if trunk else 0.3), (52, 66, 84))
    count = int(np.clip(40 * radius**1.2, 16, 110))
    limbs = rng.normal(0, 1, (6, 3)) * [0.42, 0.42, 0.2]
    offset = limbs[rng.integers(6, size=count)] + rng.normal(0, 0.26, (count, 3)) * [1, 1, 0.7]
    offset /= np.maximum(1.0, np.linalg.norm(offset, axis=1, keepdims=True))
    offset = offset[np.argsort(offset[:, 2])]
    balls = np.column_stack([offset * radius + [0, 0, middle], radius * rng.uniform(0.08, 0.24, count)])
    tone = 0.92 + 0.42 * offset[:, 2] + rng.normal(0, 0.11, count)
    colors = LEAVES[rng.integers(len(LEAVES))] * tone[:, None] + rng.normal(0, 5, (count, 3))
    return b.build(balls[balls[:, 2] > 0.1], np.clip(colors, 0, 255)[balls[:, 2] > 0.1])


def make_container(rng: np.random.Generator) -> Mesh:
    """A closed steel box with ribs, as long and wide as a van, in a vehicle's color, without any window."""
    length, half, height = rng.uniform(3.4, 6.0), rng.uniform(0.9, 1.15), rng.uniform(1.5, 2.5)
    color = paint(rng)
    b = MeshBuilder()
    faces = b.box((-length / 2, length / 2), (-half, half), (0.0, height), tuple(color))
    ribs = [inset(face, 1.0, 1.0) for face in (faces[1], faces[3], faces[4])]
    for face in ribs:
        for s in np.linspace(0.06, 0.94, int(length * 1.6)):
            a, c = face[0] + (face[1] - face[0]) * s, face[3] + (face[2] - face[3]) * s
            if face is ribs[2]:  # ribs run across the roof
                a, c = face[1] + (face[2] - face[1]) * s, face[0] + (face[3] - face[0]) * s
            step = (face[1] - face[0]) if face is not ribs[2] else (face[2] - face[1])
            step = step / np.linalg.norm(step) * 0.08
            b.add(np.array([[a - step, a + step, c + step, c - step]]), color * 0.78, two_sided=True)
    return b.build()


def make_crate(rng: np.random.Generator) -> Mesh:
    """A wooden or painted crate, or a stack of two."""
    size = rng.uniform(0.45, 1.0)
    color = paint(rng) if rng.random() < 0.6 else np.array([92, 140, 176]) * rng.uniform(0.8, 1.1)
    b = MeshBuilder()
    z = 0.0
    for _ in range(rng.integers(1, 3)):
        faces = b.box((-size, size), (-size * 0.8, size * 0.8), (z, z + size), tuple(color))
        b.add(np.stack([inset(f, 0.8, 0.8) for f in faces]), color * 0.82)
        z += size
        size *= 0.75
    return b.build()


def make_bin(rng: np.random.Generator) -> Mesh:
    """A row of wheeled bins with lids of another color."""
    b = MeshBuilder()
    body, lid = paint(rng), paint(rng)
    for i in range(rng.integers(1, 4)):
        y = i * 0.85
        b.frustum((-0.32, 0.32, y - 0.3, y + 0.3), (-0.38, 0.38, y - 0.36, y + 0.36), (0.0, 1.0), tuple(body))
        b.box((-0.42, 0.4), (y - 0.38, y + 0.38), (1.0, 1.12), tuple(lid))
    return b.build()


def make_bench(rng: np.random.Generator) -> Mesh:
    """A bench with a back."""
    b = MeshBuilder()
    color = tuple(paint(rng) * 0.6 + np.array([60, 90, 110]) * 0.4)
    b.box((-0.3, 0.3), (-1.1, 1.1), (0.35, 0.5), color)
    b.box((-0.36, -0.28), (-1.1, 1.1), (0.5, 1.0), color)
    return b.build()


def make_post(rng: np.random.Generator) -> Mesh:
    """A bollard, a sign on a pole, or a cone: thin and upright like a person, with a person's shadow."""
    b = MeshBuilder()
    kind = rng.integers(3)
    color = tuple(paint(rng))
    if kind == 0:
        b.prism((0, 0, 0), 0.16, rng.uniform(0.8, 1.2), color, color, sides=6)
    elif kind == 1:
        b.box((-0.06, 0.06), (-0.06, 0.06), (0.0, 2.6), (120, 122, 122))
        b.box((-0.03, 0.05), (-0.4, 0.4), (1.9, 2.6), color)
    else:
        orange = (40, 110, 235)
        b.frustum((-0.3, 0.3, -0.3, 0.3), (-0.05, 0.05, -0.05, 0.05), (0.0, 0.9), orange)
    return b.build()


def make_lamp_post(rng: np.random.Generator) -> Mesh:
    """A street lamp; it throws a pool of light at night."""
    b = MeshBuilder()
    height = rng.uniform(5.0, 7.0)
    b.box((-0.08, 0.08), (-0.08, 0.08), (0.0, height), (112, 114, 114))
    b.bar((0, 0, height), (1.6, 0, height + 0.2), 0.14, (112, 114, 114))
    b.box((1.3, 1.9), (-0.16, 0.16), (height + 0.1, height + 0.25), (170, 172, 172))
    b.lamps.append((1.6, 0, height, 0.55, 0.8, 1.0, 0.5))
    return b.build()


def make_parasol(rng: np.random.Generator) -> Mesh:
    """A market umbrella or awning in one or two colors."""
    b = MeshBuilder()
    radius, first = rng.uniform(0.9, 1.5), paint(rng)
    second = paint(rng) if rng.random() < 0.6 else first * 0.85
    angle = np.arange(9) * np.pi / 4
    rim = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), np.full(9, 2.1)])
    tip = np.array([0.0, 0.0, 2.7])
    b.box((-0.05, 0.05), (-0.05, 0.05), (0.0, 2.2), (120, 120, 120))
    slices = np.stack([[rim[i], rim[i + 1], tip, tip] for i in range(8)])
    b.add(slices, np.where((np.arange(8) % 2)[:, None] == 0, first, second))
    return b.build()


def make_kiosk(rng: np.random.Generator) -> Mesh:
    """A small hut with a striped roof, about as large as a car."""
    b = MeshBuilder()
    length, half = rng.uniform(1.2, 2.2), rng.uniform(0.9, 1.4)
    color = paint(rng)
    b.box((-length, length), (-half, half), (0.0, 2.2), tuple(paint(rng) * 0.5 + 90))
    roof = b.box((-length - 0.3, length + 0.3), (-half - 0.3, half + 0.3), (2.2, 2.4), tuple(color))[4]
    for s in np.linspace(0.1, 0.8, 4):
        a, c = roof[0] + (roof[3] - roof[0]) * s, roof[1] + (roof[2] - roof[1]) * s
        step = (roof[3] - roof[0]) * 0.09
        b.add(np.stack([a, c, c + step, a + step])[None] + np.array([0, 0, 0.01]), np.clip(color * 0.5 + 110, 0, 255))
    return b.build()


DISTRACTORS = {
    "bin": make_bin,
    "bush": make_bush,
    "crate": make_crate,
    "container": make_container,
    "bench": make_bench,
    "post": make_post,
    "parasol": make_parasol,
    "kiosk": make_kiosk,
    "tree": make_tree,
    "lamp": make_lamp_post,
}
