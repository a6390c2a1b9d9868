"""Five kinds of places: street, car park, square, yard, field. Each paints the ground and proposes slots.

Letters: g the ground; u, v meters in the frame of the layout, in which a road runs along u. What stands in a slot, if
anything, is drawn later (``scene.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from d2_ext.synthetic.ground import WHITE, YELLOW, Building, Ground, Slot, blob, rectangle
from d2_ext.synthetic.props import make_building

import numpy as np

LANE = 3.3  # width, meters
CLEAR = 8.0  # meters along a road from the middle of a side road in which nothing stands
# Chances of each kind in a slot; what is missing to 1 stays free.
TRAFFIC = {"car": 0.36, "van": 0.24, "bike": 0.23}
PARKED = {"car": 0.46, "van": 0.28}
WALKERS = {"person": 0.4, "bike": 0.2, "bin": 0.03, "bench": 0.03, "post": 0.04, "bush": 0.04}
LEFTOVERS = {"crate": 0.2, "container": 0.2, "bin": 0.15, "post": 0.15, "bush": 0.1, "parasol": 0.1, "kiosk": 0.05}
GREENERY = {"tree": 0.5, "bush": 0.25, "lamp": 0.08, "post": 0.05}


def street(g: Ground) -> None:
    """A road with sidewalks, curbside parking, sometimes a side road; houses or grass beyond."""
    rng = g.rng
    u0, u1, v0, v1 = g.extent
    g.cover(str(rng.choice(["grass", "soil", "concrete", "grass"])))
    # The middle of the road is at v = shift. From there outwards: lanes, parking, sidewalk.
    lanes = int(rng.choice([1, 2, 2, 3]))
    half, walk = lanes * LANE, rng.uniform(2.6, 4.5)
    parking = 2.4 if rng.random() < 0.6 else 0.0
    shift = rng.uniform(-9, 9)
    edge = half + parking
    g.fill(rectangle(u0, u1, shift - edge - walk, shift + edge + walk), str(rng.choice(["paving", "concrete"])))
    cross = rng.uniform(u0 * 0.5, u1 * 0.5) if rng.random() < 0.45 else None
    if cross is not None:  # a side road; the main road is painted over it
        g.fill(rectangle(cross - 3.6 - walk * 0.7, cross + 3.6 + walk * 0.7, v0, v1), "paving")
        g.fill(rectangle(cross - 3.6, cross + 3.6, v0, v1), "asphalt", tone=0.97)
        for v in np.arange(v0, v1, 6.0):
            g.line((cross, v), (cross, v + 3), 0.16, WHITE)
            if rng.random() < 0.5:
                side = rng.choice([-1, 1])
                heading = np.pi / 2 if side > 0 else -np.pi / 2
                g.slots.append(Slot(cross + side * 1.8, v + rng.uniform(0, 3), heading + rng.normal(0, 0.05), TRAFFIC))
    g.fill(rectangle(u0, u1, shift - edge, shift + edge), "asphalt")
    _wear(g, shift, half)
    for side in (-1, 1):
        g.line((u0, shift + side * (edge + 0.1)), (u1, shift + side * (edge + 0.1)), 0.22, (172, 174, 174))
        gap = rng.choice([6.3, 8.0, 14.0], p=[0.25, 0.45, 0.3])
        for lane in range(lanes):  # dense or thin traffic, all of a side in one direction
            u = u0 - rng.uniform(0, gap)
            while u < u1 + 3:
                u += gap * rng.uniform(0.95, 1.6)
                v = shift + side * (lane * LANE + LANE / 2) + rng.normal(0, 0.25)
                g.slots.append(Slot(u, v, (0.0 if side < 0 else np.pi) + rng.normal(0, 0.06), TRAFFIC))
        # Parked along the curb; some spots hold other things, and some cars stand against the traffic.
        v = shift + side * (half + 1.2)
        for u in np.arange(u0 - rng.uniform(0, 5), u1, 6.1) if parking else ():
            if cross is None or abs(u - cross) > CLEAR:
                kinds = PARKED if rng.random() < 0.9 else LEFTOVERS
                heading = rng.choice([0.0, np.pi], p=[0.85, 0.15]) + rng.normal(0, 0.03)
                g.slots.append(Slot(u + rng.normal(0, 0.25), v + rng.normal(0, 0.1), heading, kinds))
        v = shift + side * (edge + walk / 2)
        for u in np.arange(u0, u1, 2.6):  # on the sidewalk
            heading = rng.choice([0.0, np.pi]) + rng.normal(0, 0.3)
            g.slots.append(Slot(u + rng.uniform(0, 2), v + rng.uniform(-0.4, 0.4) * walk, heading, WALKERS))
        v = shift + side * (edge + walk + 1.8)
        for u in np.arange(u0, u1, 6.5):  # on the verge behind it
            if cross is None or abs(u - cross) > CLEAR:
                g.slots.append(Slot(u + rng.normal(0, 0.4), v, rng.uniform(0, 6.3), GREENERY))
        _houses(g, shift, side, edge + walk + rng.uniform(3.5, 7), cross)
    _markings(g, shift, lanes, parking > 0)
    if cross is not None or rng.random() < 0.4:
        u = (cross or 0.0) + rng.choice([-1, 1]) * 6.5  # a zebra crossing
        for v in np.arange(shift - half + 0.4, shift + half - 0.3, 1.1):
            g.mark(rectangle(u - 1.6, u + 1.6, v, v + 0.55), WHITE)
        for v in np.arange(shift - half, shift + half, 1.5):
            heading = rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.2)
            g.slots.append(Slot(u + rng.uniform(-1.4, 1.4), v, heading, {"person": 0.4, "bike": 0.08}))


def _wear(g: Ground, shift: float, half: float) -> None:
    """Patches, cracks, manholes: dark and light shapes that are nothing."""
    u0, u1, _, _ = g.extent
    rng, base = g.rng, g.color("asphalt")
    for _ in range(rng.integers(2, 9)):
        u, v = rng.uniform(u0, u1), shift + rng.uniform(-half, half)
        size = rng.uniform(0.6, 3.0)
        shape = rectangle(u - size, u + size, v - 0.7, v + 0.7) if rng.random() < 0.5 else blob(rng, u, v, size * 0.6)
        g.mark(shape, tuple(base * rng.uniform(0.72, 1.15)))
    for _ in range(rng.integers(0, 5)):
        u, v = rng.uniform(u0, u1), shift + rng.uniform(-half, half)
        g.mark(blob(rng, u, v, 0.42), tuple(base * 0.5))


def _houses(g: Ground, shift: float, side: int, distance: float, cross: float | None) -> None:
    """A row of houses on one side, with gaps, ``distance`` from the road's middle; sometimes none at all."""
    rng = g.rng
    if rng.random() < 0.4:
        return
    u0, u1, _, _ = g.extent
    u = u0 - rng.uniform(0, 10)
    while u < u1:
        length, width = rng.uniform(9, 22), rng.uniform(8, 15)
        middle = u + length / 2
        if (cross is None or abs(middle - cross) > length / 2 + CLEAR) and rng.random() < 0.85:
            add_building(g, middle, shift + side * (distance + width / 2), length, width)
        u += length + rng.uniform(1.5, 9)


def add_building(g: Ground, u: float, v: float, length: float, width: float, *, heading: float = 0.0) -> None:
    """Place a house whose height suits the camera's: it must neither reach it nor hide half of the image."""
    altitude = g.camera.altitude
    height = min(g.rng.uniform(3.0, 14.0), altitude * (0.32 if g.camera.tilt < 0.3 else 0.22))
    mesh = make_building(g.rng, length, width, height)
    x, y = g.to_world(np.array([u, v]))
    g.buildings.append(Building(mesh.placed(x, y, heading + g.angle), float(x), float(y), length, width))


def _markings(g: Ground, shift: float, lanes: int, parking: bool) -> None:
    """Lines between lanes, dashed within a side and solid in the middle and at the edge; two arrows."""
    u0, u1, _, _ = g.extent
    center = YELLOW if g.rng.random() < 0.4 else WHITE
    worn = g.rng.uniform(0.7, 1.0)
    for lane in range(-lanes + (0 if parking else 1), lanes + (1 if parking else 0)):
        v = shift + lane * LANE
        if (lane == 0 and lanes > 1) or abs(lane) == lanes:
            g.line((u0, v), (u1, v), 0.2, tuple(np.array(center if lane == 0 else WHITE) * worn))
            continue
        for u in np.arange(u0, u1, 7.0):
            g.line((u, v), (u + 3.2, v), 0.2, tuple(np.array(WHITE) * worn))
    for u in g.rng.uniform(u0, u1, 2):  # direction arrows, as long as a car
        v = shift + g.rng.choice([-1, 1]) * LANE / 2
        g.line((u, v), (u + 2.4, v), 0.24, WHITE)
        g.mark(np.array([[u + 2.2, v - 0.5], [u + 3.6, v], [u + 2.2, v + 0.5]]), WHITE)


def car_park(g: Ground) -> None:
    """Rows of bays back to back with aisles between them: crowded, all headings alike."""
    rng = g.rng
    u0, u1, v0, v1 = g.extent
    base = str(rng.choice(["asphalt", "concrete", "gravel", "asphalt"]))
    g.cover(base)
    bay, deep, aisle = rng.uniform(2.5, 2.9), 5.2, rng.uniform(6, 8)
    slant = rng.choice([0.0, 0.0, 0.35])
    full = rng.uniform(0.35, 1.0)
    v = v0 - rng.uniform(0, 8)
    while v < v1:
        for row, heading in ((v, np.pi / 2), (v + deep, -np.pi / 2)):
            heading += slant
            # Lines lean with the bays, whichever way the row faces.
            lean = deep * np.tan(heading - np.pi / 2) if heading > 0 else deep * np.tan(heading + np.pi / 2)
            for u in np.arange(u0, u1, bay):
                if base != "gravel":
                    g.line((u - lean / 2, row), (u + lean / 2, row + deep), 0.14, WHITE)
                if rng.random() < full:
                    turn = np.pi if rng.random() < 0.3 else 0.0
                    kinds = {"car": 0.58, "van": 0.32} if rng.random() < 0.9 else LEFTOVERS
                    at = row + deep / 2 + rng.normal(0, 0.2)
                    middle = u + bay / 2 + rng.normal(0, 0.1)
                    g.slots.append(Slot(middle, at, heading + turn + rng.normal(0, 0.04), kinds))
        island = rng.random() < 0.35
        if island:
            g.fill(rectangle(u0, u1, v + deep - 0.5, v + deep + 0.5), "grass")
            for u in np.arange(u0, u1, 7.0):
                g.slots.append(Slot(u + rng.normal(0, 1), v + deep, 0.0, {"tree": 0.35, "bush": 0.3, "lamp": 0.1}))
        for u in np.arange(u0, u1, 3.2):
            at = v + 2 * deep + rng.uniform(0.4, aisle - 0.4)
            mixed = {"person": 0.26, "bike": 0.18, "car": 0.06, "van": 0.03, "post": 0.05, "crate": 0.03}
            g.slots.append(Slot(u + rng.uniform(0, 2), at, rng.choice([0, np.pi]) + rng.normal(0, 0.4), mixed))
        v += 2 * deep + aisle


def square(g: Ground) -> None:
    """A paved or green place with paths, groups of people, parked bikes, benches and stalls."""
    rng = g.rng
    u0, u1, v0, v1 = g.extent
    g.cover(str(rng.choice(["paving", "grass", "concrete", "paving"])))
    paths = str(rng.choice(["concrete", "gravel", "asphalt"]))
    for _ in range(rng.integers(1, 4)):
        ends = np.array([[u0, rng.uniform(v0, v1)], [u1, rng.uniform(v0, v1)]])
        side = np.array([0.0, rng.uniform(1.5, 3.0)])
        g.fill(np.array([ends[0] - side, ends[1] - side, ends[1] + side, ends[0] + side]), paths)
    for _ in range(rng.integers(1, 5)):
        u, v = rng.uniform(u0, u1), rng.uniform(v0, v1)
        g.fill(blob(rng, u, v, rng.uniform(3, 7)), str(rng.choice(["grass", "water", "soil", "grass"])))
        _scatter(g, (u - 5, u + 5, v - 5, v + 5), 5, GREENERY)
    area = (u1 - u0) * (v1 - v0)
    _scatter(g, g.extent, int(area / 45), {"person": 0.46, "bike": 0.36})
    _scatter(g, g.extent, int(area / 160), {**GREENERY, **LEFTOVERS})
    _scatter(g, g.extent, int(area / 500), PARKED)
    for _ in range(rng.integers(1, 5)):  # groups
        u, v = rng.uniform(u0, u1), rng.uniform(v0, v1)
        _scatter(g, (u - 3, u + 3, v - 3, v + 3), int(rng.integers(3, 11)), {"person": 0.7, "bike": 0.12})
    for _ in range(rng.integers(0, 3)):  # rows of parked bikes
        u, v, heading = rng.uniform(u0, u1), rng.uniform(v0, v1), rng.uniform(0, 6.3)
        for i in range(rng.integers(3, 9)):
            g.slots.append(Slot(u + i * 1.15, v + rng.normal(0, 0.1), heading + rng.normal(0, 0.1), {"bike": 0.9}))
    if rng.random() < 0.35:
        add_building(g, rng.uniform(u0, u1), rng.choice([v0, v1]), rng.uniform(12, 25), rng.uniform(8, 14))


def yard(g: Ground) -> None:
    """Bare ground with containers, crates, and vehicles that stand in any direction."""
    rng = g.rng
    u0, u1, v0, v1 = g.extent
    g.cover(str(rng.choice(["soil", "gravel", "concrete"])))
    for _ in range(rng.integers(3, 9)):
        shape = blob(rng, rng.uniform(u0, u1), rng.uniform(v0, v1), rng.uniform(2, 7))
        g.fill(shape, str(rng.choice(["soil", "grass", "concrete", "gravel"])))
    for _ in range(rng.integers(1, 4)):  # tire tracks
        v, lean = rng.uniform(v0, v1), rng.uniform(-12, 12)
        for side in (-0.8, 0.8):
            g.line((u0, v + side), (u1, v + lean + side), 0.4, tuple(g.color("soil") * 0.8))
    area = (u1 - u0) * (v1 - v0)
    _scatter(g, g.extent, int(area / 130), {"container": 0.25, "crate": 0.25, "bin": 0.1, "bush": 0.1, "post": 0.1})
    _scatter(g, g.extent, int(area / 50), {"car": 0.36, "van": 0.48})
    _scatter(g, g.extent, int(area / 60), {"person": 0.42, "bike": 0.35})
    heading, u, v = rng.uniform(0, 6.3), rng.uniform(u0, u1), rng.uniform(v0, v1)
    for i in range(rng.integers(3, 9)):  # a loose row
        g.slots.append(
            Slot(u + i * 3.0, v + rng.normal(0, 0.4), heading + rng.normal(0, 0.1), {"car": 0.4, "van": 0.5})
        )
    if rng.random() < 0.5:
        spot = rng.uniform(u0, u1) * 0.7, rng.uniform(v0, v1) * 0.7
        add_building(g, *spot, rng.uniform(10, 22), rng.uniform(8, 14), heading=float(rng.uniform(0, 3)))


def field(g: Ground) -> None:
    """Crop, meadow or water with a track and few objects."""
    rng = g.rng
    u0, u1, v0, v1 = g.extent
    cover = str(rng.choice(["crop", "grass", "crop", "water"]))
    g.cover(cover)
    v = rng.uniform(v0, v1) * 0.6
    half, lean = rng.uniform(1.6, 3.4), rng.uniform(-15, 15)
    track = np.array([[u0, v - half], [u1, v + lean - half], [u1, v + lean + half], [u0, v + half]])
    g.fill(track, str(rng.choice(["soil", "gravel", "asphalt", "grass"])))
    heading = float(np.arctan2(lean, u1 - u0))
    for u in np.arange(u0, u1, 4.5):
        at = v + lean * (u - u0) / (u1 - u0) + rng.uniform(-0.6, 0.6) * half
        kinds = {"car": 0.16, "van": 0.15, "bike": 0.24, "person": 0.24}
        g.slots.append(Slot(u, at, heading + rng.choice([0, np.pi]) + rng.normal(0, 0.15), kinds))
    if cover == "water":
        return
    for side in (-1, 1):
        for u in np.arange(u0, u1, 5.0):
            at = v + lean * (u - u0) / (u1 - u0) + side * (half + rng.uniform(2.2, 4))
            g.slots.append(Slot(u, at, rng.uniform(0, 6.3), {"tree": 0.25, "bush": 0.25, "post": 0.06}))
    _scatter(g, g.extent, 14, {"tree": 0.3, "bush": 0.4, "person": 0.1, "crate": 0.06})


def _scatter(g: Ground, box: tuple[float, float, float, float], count: int, kinds: dict[str, float]) -> None:
    """Slots anywhere in a box u0, u1, v0, v1, turned in any direction."""
    u0, u1, v0, v1 = box
    for _ in range(count):
        heading = g.rng.uniform(0, 2 * np.pi)
        g.slots.append(Slot(g.rng.uniform(u0, u1), g.rng.uniform(v0, v1), heading, kinds))


LAYOUTS: dict[str, tuple[Callable[[Ground], None], float]] = {
    "street": (street, 0.38),
    "car_park": (car_park, 0.22),
    "square": (square, 0.2),
    "yard": (yard, 0.13),
    "field": (field, 0.07),
}
"""Name -> (painter of the ground, share of the images)."""
