"""Persons and bikes. Local frame: meters, x forward, y left, z up.

Both are drawn 1.6 times as large as life against the vehicles, so that few of them fall below 6 px.
"""

from __future__ import annotations

from d2_ext.synthetic.mesh import Mesh, MeshBuilder
from d2_ext.synthetic.vehicles import TIRE, paint

import numpy as np

ENLARGE = 1.6
SKIN = np.array([[132, 168, 214], [98, 134, 182], [62, 88, 128]], float)
HAIR = np.array([[28, 28, 30], [38, 52, 74], [96, 132, 160], [150, 152, 152]], float)


def make_person(rng: np.random.Generator) -> Mesh:
    """Someone who stands or walks: legs, shoulders, arms, head; sometimes with a hat or a bag."""
    k = ENLARGE * rng.uniform(0.92, 1.08)
    b = MeshBuilder()
    top, trousers = paint(rng), paint(rng) * 0.8
    stride = rng.uniform(0.0, 0.3) * k * rng.choice([-1, 1])
    for side in (-1, 1):
        foot, y = side * stride, side * 0.1 * k
        w = 0.09 * k
        b.frustum((foot - w, foot + w * 1.6, y - w, y + w), (-w, w, y - w, y + w), (0.0, 0.86 * k), tuple(trousers))
    for side in (-1, 1):  # arms swing against the legs
        hand, y = -side * stride * 0.9, side * 0.3 * k
        b.bar((hand + 0.05, y, 0.8 * k), (0.0, side * 0.25 * k, 1.4 * k), 0.13 * k, tuple(top * 0.9))
    waist = (-0.13 * k, 0.13 * k, -0.19 * k, 0.19 * k)
    b.frustum(waist, (-0.13 * k, 0.13 * k, -0.27 * k, 0.27 * k), (0.82 * k, 1.46 * k), tuple(top))
    if rng.random() < 0.22:
        b.box((-0.32 * k, -0.13 * k), (-0.16 * k, 0.16 * k), (0.95 * k, 1.4 * k), tuple(paint(rng)))
    _add_head(b, rng, (0.03 * k, 0.0, 1.46 * k), k)
    return b.build()


def _add_head(b: MeshBuilder, rng: np.random.Generator, neck: tuple[float, float, float], k: float) -> None:
    skin = SKIN[rng.choice(3, p=[0.5, 0.3, 0.2])]
    cover = paint(rng) if rng.random() < 0.2 else HAIR[rng.choice(4, p=[0.5, 0.25, 0.1, 0.15])]
    b.prism(neck, 0.13 * k, 0.13 * k, tuple(skin), tuple(skin), sides=6)
    b.prism(
        (neck[0] - 0.02, neck[1], neck[2] + 0.1 * k), 0.145 * k, 0.16 * k, tuple(cover * 0.9), tuple(cover), sides=6
    )


def make_bike(rng: np.random.Generator) -> Mesh:
    """A two-wheeler, with its rider in four of five cases; one object, one box."""
    k = ENLARGE * rng.uniform(0.95, 1.06)
    b = MeshBuilder()
    motor = rng.random() < 0.4
    color = tuple(paint(rng))
    if motor:  # a scooter
        for x in (-0.6 * k, 0.66 * k):
            _add_wheel(b, x, 0.28 * k, 0.13 * k, k, spokes=False)
        b.box((-0.55 * k, 0.35 * k), (-0.13 * k, 0.13 * k), (0.22 * k, 0.42 * k), color)
        tail = (-0.85 * k, 0.05 * k, -0.15 * k, 0.15 * k)
        b.frustum(tail, (-0.8 * k, 0.0, -0.11 * k, 0.11 * k), (0.4 * k, 0.8 * k), color)
        shield = (0.38 * k, 0.62 * k, -0.2 * k, 0.2 * k)
        b.frustum(shield, (0.36 * k, 0.46 * k, -0.14 * k, 0.14 * k), (0.3 * k, 0.98 * k), color)
        b.box((-0.75 * k, 0.0), (-0.12 * k, 0.12 * k), (0.8 * k, 0.88 * k), TIRE)
        b.bar((0.4 * k, -0.33 * k, 1.04 * k), (0.4 * k, 0.33 * k, 1.04 * k), 0.09 * k, TIRE)
        if rng.random() < 0.3:  # delivery box behind the seat
            b.box((-1.0 * k, -0.6 * k), (-0.2 * k, 0.2 * k), (0.85 * k, 1.25 * k), tuple(paint(rng)))
    else:  # a bicycle: a frame of thin bars
        for x in (-0.56 * k, 0.56 * k):
            _add_wheel(b, x, 0.36 * k, 0.09 * k, k, spokes=True)
        crank, seat, neck = (-0.05 * k, 0, 0.32 * k), (-0.2 * k, 0, 0.92 * k), (0.4 * k, 0, 0.9 * k)
        for start, end in (((-0.56 * k, 0, 0.36 * k), crank), (crank, seat), (crank, neck), (seat, neck)):
            b.bar(start, end, 0.08 * k, color)
        b.bar((0.56 * k, 0, 0.36 * k), neck, 0.08 * k, color)
        b.bar((0.4 * k, -0.3 * k, 1.04 * k), (0.4 * k, 0.3 * k, 1.04 * k), 0.08 * k, TIRE)
        b.box((-0.36 * k, -0.1 * k), (-0.08 * k, 0.08 * k), (0.92 * k, 0.99 * k), TIRE)
        if rng.random() < 0.3:  # basket
            b.box((0.5 * k, 0.78 * k), (-0.16 * k, 0.16 * k), (0.75 * k, 0.98 * k), (110, 140, 150))
    if rng.random() < 0.8:  # the rider: legs, arms, a body that leans forward, a head
        top, trousers = tuple(paint(rng)), tuple(paint(rng) * 0.7)
        for side in (-1, 1):
            knee = (0.18 * k, side * 0.14 * k, rng.uniform(0.62, 0.82) * k)
            b.bar((0.0, side * 0.12 * k, 0.3 * k), knee, 0.13 * k, trousers)
            b.bar(knee, (-0.2 * k, side * 0.1 * k, 0.95 * k), 0.15 * k, trousers)
            b.bar((0.38 * k, side * 0.27 * k, 1.06 * k), (0.02 * k, side * 0.22 * k, 1.4 * k), 0.11 * k, top)
        lean = 0.12 * k
        low = (-0.3 * k, -0.08 * k, -0.15 * k, 0.15 * k)
        b.frustum(low, (-0.14 * k + lean, 0.08 * k + lean, -0.22 * k, 0.22 * k), (0.92 * k, 1.45 * k), top)
        _add_head(b, rng, (0.14 * k, 0.0, 1.45 * k), k)
    mesh = b.build()
    if motor:
        lamp = np.array([[0.75 * k, 0, 0.8 * k, 0.75, 0.95, 1.0, 0.4]])
        return Mesh(mesh.quads, mesh.colors, mesh.two_sided, mesh.parts, lamps=lamp)
    return mesh


def _add_wheel(b: MeshBuilder, x: float, radius: float, width: float, k: float, *, spokes: bool) -> None:
    """A ring (or disc) that faces +-y, with a tread that shows from above."""
    angle = np.arange(8) * np.pi / 4
    ring = np.column_stack([np.cos(angle), np.zeros(8), np.sin(angle)])
    outer = np.array([x, 0, radius]) + radius * ring
    nxt = np.roll(np.arange(8), -1)
    if spokes:
        inner = np.array([x, 0, radius]) + (radius - 0.09 * k) * ring
        b.add(np.stack([outer, outer[nxt], inner[nxt], inner], axis=1), TIRE, two_sided=True)
    else:
        b.disc((x, 0.0, radius), radius, TIRE, sides=8)
    side = np.array([0, width / 2, 0])
    tread = np.stack([outer - side, outer[nxt] - side, outer[nxt] + side, outer + side], axis=1)
    b.add(tread[:4], TIRE, two_sided=True)
