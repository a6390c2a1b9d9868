"""What a synthetic image holds: boxes, sizes, classes, and that colour does not give the classes away."""

from __future__ import annotations

from collections import Counter

from d2_ext.synthetic.camera import Camera
from d2_ext.synthetic.config import CLASSES, OBJECT_RANGE_PX, SyntheticConfig
from d2_ext.synthetic.mesh import MeshBuilder, Sun, draw, frustum_quads, normals_of, silhouette_area
from d2_ext.synthetic.people import make_bike, make_person
from d2_ext.synthetic.props import DISTRACTORS
from d2_ext.synthetic.scene import Image, make_image
from d2_ext.synthetic.vehicles import make_car, make_van

import numpy as np
import pytest

CONFIG = SyntheticConfig(sizes=((320, 320), (288, 224)))
CAMERA = Camera(200, 100, focal=300.0, tilt=0.0, altitude=30.0)


@pytest.fixture(scope="module")
def images() -> dict[str, list[Image]]:
    counts = {"train": 60, "val": 24}
    return {split: [make_image(CONFIG, split, i) for i in range(n)] for split, n in counts.items()}


def test_a_vertical_camera_scales_by_focal_over_altitude() -> None:
    # 300 px / 30 m = 10 px a metre around the centre (100, 50); +y of the world is up in the image.
    points, depth = CAMERA.project(np.array([[0.0, 0, 0], [2, 0, 0], [0, 3, 0], [2, 0, 15]]))
    assert np.allclose(points, [[100, 50], [120, 50], [100, 20], [140, 50]])  # at 15 m height: 20 px a metre
    assert np.allclose(depth, [30, 30, 30, 15])


@pytest.mark.parametrize("tilt", [0.0, 0.4, 0.9])
def test_ground_points_project_back_to_their_pixels(tilt: float) -> None:
    camera = Camera(64, 48, focal=90.0, tilt=tilt, altitude=20.0)
    grid = camera.ground_grid()
    flat = np.concatenate([grid, np.zeros((48, 64, 1))], axis=-1)
    pixels, depth = camera.project(flat)
    x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5)
    assert np.abs(pixels - np.stack([x, y], axis=-1)).max() < 1e-3
    assert np.allclose(depth, camera.ground_depth()[:, None], rtol=1e-5)


def test_faces_of_a_box_point_outwards() -> None:
    quads = frustum_quads((-2, 2, -1, 1), (-2, 2, -1, 1), (0, 1.5))
    assert np.allclose(normals_of(quads), [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1]])


@pytest.mark.parametrize("make", [make_car, make_van, make_person, make_bike, *DISTRACTORS.values()])
def test_every_mesh_stands_on_the_ground_and_its_solid_faces_point_away_from_it(make: object) -> None:
    mesh = make(np.random.default_rng(3))  # type: ignore[operator]
    assert mesh.quads[..., 2].min() > -0.05
    normals, solid = normals_of(mesh.quads), ~mesh.two_sided
    level = (np.ptp(mesh.quads[..., 2], axis=1) < 1e-9) & (mesh.quads[..., 2].mean(1) > 0.4)
    flat = solid & level  # roofs and what is painted on them
    assert (normals[flat, 2] > 0.99).all()
    hull = mesh.parts == mesh.parts[solid][0]
    middle = mesh.quads[hull].reshape(-1, 3).mean(0)
    assert ((normals[hull] * (mesh.quads[hull].mean(1) - middle)).sum(1) > 0).all()


def test_a_drawn_box_covers_the_pixels_of_its_roof() -> None:
    b = MeshBuilder()
    b.box((-2, 2), (-1, 1), (0.0, 0.0001), (200, 200, 200))
    canvas = np.zeros((100, 200, 4), np.uint8)
    draw(canvas, b.build(), CAMERA, Sun(np.array([0.0, 0, 1]), 1.0, 0.5), ident=7)
    rows, columns = np.nonzero(canvas[..., 3] == 7)
    # 4 m x 2 m at 10 px a metre; the rasteriser includes the outline's pixels.
    assert abs(np.ptp(columns) + 1 - 40) <= 1
    assert abs(np.ptp(rows) + 1 - 20) <= 1
    assert silhouette_area(b.build(), CAMERA) == len(rows)


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    first = make_image(CONFIG, "train", 5)
    make_image(CONFIG, "train", 6)
    again = make_image(CONFIG, "train", 5)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.labels == again.labels
    others = [(CONFIG, "train", 6), (CONFIG, "val", 5), (SyntheticConfig(sizes=CONFIG.sizes, seed=1), "train", 5)]
    for job in others:
        other = make_image(*job)
        assert other.pixels.shape != first.pixels.shape or not np.array_equal(other.pixels, first.pixels)


def test_boxes_lie_inside_and_counted_ones_have_6_to_60_px(images: dict[str, list[Image]]) -> None:
    low, high = OBJECT_RANGE_PX
    for image in images["train"]:
        height, width = image.pixels.shape[:2]
        for label in image.labels:
            x, y, w, h = label.box
            assert min(x, y) >= 0
            assert min(w, h) > 0
            assert x + w <= width
            assert y + h <= height
            assert not label.counted or low <= max(w, h) <= high


def test_sizes_spread_over_the_range(images: dict[str, list[Image]]) -> None:
    longer = np.array([max(label.box[2:]) for p in images["train"] for label in p.labels if label.counted])
    assert np.mean(longer < 12) > 0.01
    assert np.mean((longer >= 10) & (longer <= 50)) > 0.8
    assert np.mean(longer > 50) > 0.01


def test_no_class_is_rare_and_images_vary(images: dict[str, list[Image]]) -> None:
    count = Counter(label.category for p in images["train"] for label in p.labels if label.counted)
    total = sum(count.values())
    for category, name in enumerate(CLASSES):
        assert 0.1 < count[category] / total < 0.45, name
    assert {p.light for p in images["train"]} == {"sun", "clouds", "dusk", "night"}
    assert len({p.layout for p in images["train"]}) == 5
    assert {p.pixels.shape for p in images["train"]} == {(320, 320, 3), (224, 288, 3)}
    assert max(len(p.labels) for p in images["train"]) > 60  # crowds


def test_empty_images_exist_and_can_be_asked_for(images: dict[str, list[Image]]) -> None:
    every = images["train"] + images["val"]
    empty = [p for p in every if not p.labels]
    assert 0 < len(empty) < 0.25 * len(every)
    assert all(p.pixels.std() > 3 for p in empty)  # they show a place
    only = SyntheticConfig(sizes=((96, 96),), empty_fraction=1.0)
    assert not any(make_image(only, "train", i).labels for i in range(5))


@pytest.mark.parametrize("size", [(64, 64), (64, 400), (640, 80)])
def test_extreme_image_sizes_work(size: tuple[int, int]) -> None:
    image = make_image(SyntheticConfig(sizes=(size,)), "val", 1)
    assert image.pixels.shape == (size[1], size[0], 3)


def test_colour_does_not_tell_the_classes_but_size_helps(images: dict[str, list[Image]]) -> None:
    color_train, size_train, target_train = _features(images["train"])
    color_val, size_val, target_val = _features(images["val"])
    color = _balanced_accuracy(color_train, target_train, color_val, target_val)
    size = _balanced_accuracy(size_train, target_train, size_val, target_val)
    assert color < 0.45  # chance is 0.25
    assert size > color + 0.15


def _features(images: list[Image]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean BGR inside (N, 3), log width and height (N, 2), class (N,) of the counted boxes."""
    colors, sizes, target = [], [], []
    for image in images:
        for label in (entry for entry in image.labels if entry.counted):
            x, y, w, h = label.box
            crop = image.pixels[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))]
            colors.append(crop.reshape(-1, 3).mean(0))
            sizes.append(np.log([w, h]))
            target.append(label.category)
    return np.array(colors), np.array(sizes), np.array(target)


def _balanced_accuracy(
    train: np.ndarray, target_train: np.ndarray, val: np.ndarray, target_val: np.ndarray, k: int = 15
) -> float:
    """Mean over classes of the recall of a k-nearest-neighbour vote, classes weighted equally."""
    mean, std = train.mean(0), train.std(0)
    distance = (((val - mean)[:, None] / std - (train - mean)[None] / std) ** 2).sum(-1)
    near = target_train[np.argpartition(distance, k, axis=1)[:, :k]]
    votes = np.stack([(near == c).sum(1) / (target_train == c).sum() for c in range(len(CLASSES))], axis=1)
    hit = votes.argmax(1) == target_val
    return float(np.mean([hit[target_val == c].mean() for c in range(len(CLASSES))]))
