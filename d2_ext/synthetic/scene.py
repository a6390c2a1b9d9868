"""One image with its labels, from (config, split, index)."""

from __future__ import annotations

from dataclasses import dataclass

from d2_ext.synthetic.camera import Camera, sample_camera
from d2_ext.synthetic.config import CLASSES, OBJECT_RANGE_PX, SPLITS, SyntheticConfig, check_split
from d2_ext.synthetic.ground import Ground
from d2_ext.synthetic.layout import LAYOUTS
from d2_ext.synthetic.light import Light, expose, ground_light, lamp_glow, sample_light
from d2_ext.synthetic.mesh import Mesh, draw, draw_shadow, silhouette_area
from d2_ext.synthetic.people import make_bike, make_person
from d2_ext.synthetic.props import DISTRACTORS
from d2_ext.synthetic.textures import NAMES, grain
from d2_ext.synthetic.vehicles import make_car, make_van

import cv2
import numpy as np

FINE = 2  # geometry is drawn on a raster this much finer, and averaged down
NO_OBJECT = 255  # identity of everything that is no object
MAX_OBJECTS = 250
COUNTED_SHARE = 0.5  # less of it visible: iscrowd, neither hit nor miss
SHOWN_SHARE = 0.12  # less of it visible: not in the labels at all
MAKERS = {"car": make_car, "van": make_van, "person": make_person, "bike": make_bike, **DISTRACTORS}
# Half length and radius (meters) of the discs that keep things apart.
FOOTPRINTS = {
    "car": (1.5, 0.98),
    "van": (1.8, 1.08),
    "person": (0.0, 0.5),
    "bike": (0.9, 0.45),
    "container": (2.2, 1.2),
    "kiosk": (0.8, 1.6),
    "tree": (0.0, 0.9),
    "parasol": (0.0, 1.2),
    "bin": (0.6, 0.8),
    "bench": (0.0, 1.1),
}


@dataclass(frozen=True)
class Label:
    """One object.

    Attributes:
        category: index into ``CLASSES``.
        box: x, y, width, height in px; tight around what is visible, in steps of half a pixel.
        counted: False where too little is visible to be asked for (``iscrowd`` in COCO's json).
    """

    category: int
    box: tuple[float, float, float, float]
    counted: bool


@dataclass(frozen=True)
class Image:
    """Pixels (H, W, 3) uint8 BGR, labels, the layout's and the light's name, and the JPEG quality to use."""

    pixels: np.ndarray
    labels: list[Label]
    layout: str
    light: str
    quality: int


@dataclass(frozen=True)
class Thing:
    """A placed mesh; ``category`` is -1 for what is no object."""

    mesh: Mesh
    category: int
    xy: np.ndarray
    heading: float


def make_image(config: SyntheticConfig, split: str, index: int) -> Image:
    """Render image ``index`` of a split; depends on the config's seed, the split and the index alone.

    Args:
        config: recipe; the counts do not matter here.
        split: "train" or "val".
        index: 0 or more.
    """
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, SPLITS.index(check_split(split)), index]))
    width, height = config.sizes[rng.integers(len(config.sizes))]
    camera = sample_camera(rng, width, height)
    light = sample_light(rng)
    shares = np.array([share for _, share in LAYOUTS.values()])
    layout = str(rng.choice(list(LAYOUTS), p=shares / shares.sum()))
    ground = Ground(camera.scaled(FINE), rng)
    LAYOUTS[layout][0](ground)
    things = _populate(ground, camera, empty=bool(rng.random() < config.empty_fraction))
    pixels, identity = _render(rng, ground, camera, light, things)
    labels = _labels(identity, things, camera.scaled(FINE))
    return Image(pixels, labels, layout, light.name, int(rng.integers(72, 94)))


def _populate(ground: Ground, camera: Camera, *, empty: bool) -> list[Thing]:
    """Fill the slots in random order, as far as things are in view, apart, and of a fitting size."""
    rng = ground.rng
    things: list[Thing] = []
    taken = np.zeros((0, 3))
    busy = rng.uniform(0.6, 1.0)
    spots = ground.to_world(np.array([[slot.u, slot.v] for slot in ground.slots]).reshape(-1, 2))
    flat = np.column_stack([spots, np.zeros(len(spots))])
    # What stands just outside of the image may reach into it, most of all from below.
    (x, y), margin = camera.project(flat)[0].T, 14.0
    in_view = (x > -margin) & (x < camera.width + margin) & (y > -margin) & (y < camera.height + 2 * margin)
    # A slot outside of the image takes the material at the nearest pixel inside.
    pixels = ground.camera.project(flat)[0].astype(int)
    rows, columns = (np.clip(pixels[:, 1 - i], 0, n - 1) for i, n in enumerate(ground.materials.shape))
    on_land = ground.materials[rows, columns] != NAMES.index("water")

    for i in rng.permutation(np.flatnonzero(in_view & on_land)):
        slot, xy = ground.slots[i], spots[i]
        pick, kind = rng.random() / busy, None
        for candidate, chance in slot.kinds.items():
            pick -= chance
            if pick < 0:
                kind = candidate
                break
        if kind is None or (empty and kind in CLASSES) or len(things) >= MAX_OBJECTS:
            continue
        heading = slot.heading + ground.angle
        # Three discs in a row, (3, 3) x, y, radius in meters, cover the footprint; those of two things are apart.
        half, radius = FOOTPRINTS.get(kind, (0.0, 0.6))
        steps = np.array([-1.0, 0.0, 1.0])[:, None] * (half * np.array([np.cos(heading), np.sin(heading)]))
        discs = np.column_stack([xy + steps, np.full(3, radius)])
        distance = np.linalg.norm(discs[:, None, :2] - taken[None, :, :2], axis=-1)
        collides = bool((distance < discs[:, None, 2] + taken[None, :, 2]).any())
        if collides or _inside_building(ground, discs):
            continue
        mesh = MAKERS[kind](rng).placed(xy[0], xy[1], heading)
        category = CLASSES.index(kind) if kind in CLASSES else -1
        if category >= 0:  # of a fitting size, with some room: the raster moves the edges of the box
            left, top, right, bottom = mesh.bounds(camera)
            if not OBJECT_RANGE_PX[0] + 0.5 <= max(right - left, bottom - top) <= OBJECT_RANGE_PX[1] - 1:
                continue
        taken = np.concatenate([taken, discs])
        things.append(Thing(mesh, category, xy, heading))
    return things


def _inside_building(ground: Ground, discs: np.ndarray) -> bool:
    """Whether discs (3, 3) of x, y and radius touch a house's footprint."""
    for mesh, x, y, length, width in ground.buildings:
        along = mesh.quads[0, 1, :2] - mesh.quads[0, 0, :2]  # the front face runs across the heading
        v = along / np.linalg.norm(along)
        offset = discs[:, :2] - [x, y]
        across, ahead = np.abs(offset @ v), np.abs(offset @ np.array([v[1], -v[0]]))
        if ((across < width / 2 + discs[:, 2]) & (ahead < length / 2 + discs[:, 2])).any():
            return True
    return False


def _render(
    rng: np.random.Generator, ground: Ground, camera: Camera, light: Light, things: list[Thing]
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and identities (2H, 2W): 0 ground, 1 + i for thing i that is an object, 255 others."""
    # On the fine raster: where the sun does not reach the ground (255, soft edges), then everything that stands on it.
    fine, canvas = ground.camera, ground.canvas
    shade = np.zeros(canvas.shape[:2], np.uint8)
    if light.sun.direct > 0:
        for mesh in [thing.mesh for thing in things] + [building.mesh for building in ground.buildings]:
            draw_shadow(shade, mesh, fine, light.sun)
        shade = cv2.GaussianBlur(shade, (0, 0), 1.0)
    _draw_all(canvas, ground, light, things, shade)
    identity = canvas[..., 3].copy()

    # Averaged down: flat colors, the share of a pixel that is bare ground, the share that is in shadow.
    size = (camera.width, camera.height)
    flat = cv2.resize(canvas[..., :3], size, interpolation=cv2.INTER_AREA).astype(np.float32)
    bare = cv2.resize((identity == 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
    shade = cv2.resize(shade, size, interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255

    # The ground gets its texture and its shadows; what stands on it only some roughness.
    grid = camera.ground_grid()
    depth = camera.ground_depth()[:, None]
    scale = np.float32(camera.focal) / depth
    texture = grain(ground.to_layout(grid), ground.materials[::FINE, ::FINE], scale, rng)
    darkness = 1 - light.sun.diffuse / (light.sun.diffuse + light.sun.direct * light.sun.direction[2])
    shadow = 1 - shade * (1 - (1 - darkness) * light.shade_tint).astype(np.float32)
    # Little light gets under vehicles, whatever the weather.
    under = np.zeros((fine.height // FINE, fine.width // FINE), np.uint8)
    for thing in things:
        foot = thing.mesh.quads.reshape(-1, 3).copy()
        foot[:, :2] = thing.xy + (foot[:, :2] - thing.xy) * 1.04
        foot[:, 2] = 0
        hull = cv2.convexHull(np.rint(fine.project(foot)[0] / FINE * 16 - 8).astype(np.int32))
        cv2.fillConvexPoly(under, hull, 110, cv2.LINE_AA, 4)
    contact = 1 - cv2.GaussianBlur(under, (0, 0), 0.9)[..., None].astype(np.float32) / 255
    rough = 1 + rng.standard_normal((*flat.shape[:2], 1), np.float32) * np.float32(0.03)
    lit = flat * (bare * texture * shadow * contact + (1 - bare) * rough)
    if light.name != "night":
        return expose(rng, lit, light, depth, None), identity

    # At night houses and lamp posts shine, and those vehicles that are not parked.
    lamps, beams = [building.mesh.lamps for building in ground.buildings], []
    for thing in things:
        vehicle = thing.category >= 0 and len(thing.mesh.lamps) > 0
        if not vehicle:
            lamps.append(thing.mesh.lamps)
        elif rng.random() < 0.45:
            lamps.append(thing.mesh.lamps)
            front = np.array([np.cos(thing.heading), np.sin(thing.heading)]) * 2.0
            beams.append([*(thing.xy + front), thing.heading])
    every = np.concatenate([np.zeros((0, 7)), *lamps])
    pool = ground_light(grid, every, np.array(beams).reshape(-1, 3))
    strength = np.float32(rng.uniform(0.9, 1.8))
    lit = lit * (1 + strength * np.minimum(pool, 2.0))
    return expose(rng, lit, light, depth, lamp_glow(lit.shape[:2], camera, every)), identity


def _draw_all(canvas: np.ndarray, ground: Ground, light: Light, things: list[Thing], shade: np.ndarray) -> None:
    """Draw from far to near; what stands behind a house is drawn before it."""
    # A wave holds what stands behind one house and behind none that is farther away; the last, what stands before all.
    buildings = sorted(ground.buildings, key=lambda house: -float(np.hypot(house.x, house.y)))
    order = sorted(range(len(things)), key=lambda i: -float(np.hypot(*things[i].xy)))
    waves: list[list[int]] = [[] for _ in range(len(buildings) + 1)]
    for i in order:
        xy, wave_number = things[i].xy, len(buildings)
        for j, house in enumerate(buildings):
            # Behind: the line from the point below the camera to the thing crosses the house's footprint.
            corners = house.mesh.quads[:4, 0, :2]
            side = corners[:, 0] * xy[1] - corners[:, 1] * xy[0]
            crosses = not ((side > 0).all() or (side < 0).all())
            if crosses and (corners @ xy).min() < xy @ xy and (corners @ xy).max() > 0:
                wave_number = j
                break
        waves[wave_number].append(i)
    ident = {i: n + 1 for n, i in enumerate(j for j, t in enumerate(things) if t.category >= 0)}
    toward = light.sun.direction[:2] / np.linalg.norm(light.sun.direction[:2])
    for wave, building in zip(waves, [*buildings, None]):
        for i in wave:
            # Shadow, 0..1, just outside the thing on its sunny side: thrown by something else.
            thing = things[i]
            reach = np.abs((thing.mesh.quads[..., :2] - thing.xy) @ toward).max() + 0.5
            x, y = ground.camera.project(np.array([*(thing.xy + toward * reach), 0.0]))[0].astype(int)
            inside = 0 <= x < shade.shape[1] and 0 <= y < shade.shape[0]
            shadow = float(shade[y, x]) / 255 if inside else 0.0
            dim = 1 - 0.45 * (light.sun.direct > 0) * shadow
            draw(canvas, thing.mesh, ground.camera, light.sun, ident.get(i, NO_OBJECT), dim)
        if building is not None:
            draw(canvas, building.mesh, ground.camera, light.sun, NO_OBJECT)


def _labels(identity: np.ndarray, things: list[Thing], fine: Camera) -> list[Label]:
    """Tight boxes around what is visible; ``identity`` (2H, 2W) and ``fine`` are of the fine raster."""
    objects = [t for t in things if t.category >= 0]
    labels = []
    for i, thing in enumerate(objects, start=1):
        x0, y0, x1, y1 = thing.mesh.bounds(fine)
        left, top = max(int(x0) - 2, 0), max(int(y0) - 2, 0)
        window = identity[top : max(int(y1) + 3, 0), left : max(int(x1) + 3, 0)] == i
        seen = int(np.count_nonzero(window))
        share = seen / silhouette_area(thing.mesh, fine)
        if seen == 0 or share < SHOWN_SHARE:
            continue
        rows, cols = np.flatnonzero(window.any(1)), np.flatnonzero(window.any(0))
        width, height = float(cols[-1] - cols[0] + 1) / FINE, float(rows[-1] - rows[0] + 1) / FINE
        counted = share >= COUNTED_SHARE and max(width, height) >= OBJECT_RANGE_PX[0]
        box = (float(left + cols[0]) / FINE, float(top + rows[0]) / FINE, width, height)
        labels.append(Label(thing.category, box, counted))
    return labels
