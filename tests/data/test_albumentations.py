"""albumentations in training: boxes move with the image, and files that cannot be used are refused."""

from __future__ import annotations

import sys
from pathlib import Path

from d2_ext.config import add_d2_ext_config
from d2_ext.data.albumentations import load_augmentation
from d2_ext.data.loader import build_train_mapper
from d2_ext.errors import ConfigError

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from helpers.own_folders import BOX, image

pytest.importorskip("albumentations")


def _file(folder: Path, text: str) -> str:
    path = folder / "augment.yaml"
    path.write_text(text)
    return str(path)


def _scene() -> np.ndarray:
    scene = np.zeros((80, 100, 3), np.uint8)
    scene[20:60, 10:40] = 255
    return scene


def _bright(image: np.ndarray) -> list[float]:
    ys, xs = np.nonzero(image[:, :, 0] > 127)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize(
    "text",
    [
        "- HorizontalFlip: {p: 1}",
        "- VerticalFlip: {p: 1}\n- Transpose: {p: 1}",
        "- Affine: {p: 1, translate_px: {x: 7, y: 5}, scale: 1.0, rotate: 0, shear: 0}",
        "- RandomCrop: {p: 1, height: 70, width: 60}",
        "- Affine: {p: 1, rotate: [90, 90], translate_px: 0, scale: 1.0, shear: 0}",
        "- RandomScale: {p: 1, scale_limit: [0.5, 0.5]}",
    ],
)
def test_boxes_move_with_the_image(tmp_path: Path, text: str) -> None:
    augmentation = load_augmentation(_file(tmp_path, text))
    inputs = T.AugInput(_scene())
    transform = augmentation(inputs)
    box = transform.apply_box(np.array([[10.0, 20, 40, 60]]))[0]
    height, width = inputs.image.shape[:2]
    # Tools that move pixel centres and corners alike may be a pixel off at the mirrored side.
    assert np.clip(box, 0, [width, height, width, height]) == pytest.approx(_bright(inputs.image), abs=1.01)


def test_the_same_seed_gives_the_same_images(tmp_path: Path) -> None:
    augmentation = load_augmentation(_file(tmp_path, "- RandomBrightnessContrast: {p: 0.5}\n- GaussNoise\n"))

    def images() -> list[np.ndarray]:
        np.random.seed(5)
        return [augmentation.get_transform(_scene()).apply_image(_scene()) for _ in range(4)]

    first, second = images(), images()
    assert all((a == b).all() for a, b in zip(first, second))
    assert any((a != first[0]).any() for a in first)


def test_the_transforms_see_rgb_whatever_the_model_wants(tmp_path: Path) -> None:
    file = _file(tmp_path, "- RGBShift: {p: 1, r_shift_limit: [50, 50], g_shift_limit: [0, 0], b_shift_limit: [0, 0]}")
    for image_format, red in (("RGB", 0), ("BGR", 2)):
        image = load_augmentation(file, image_format).get_transform(_scene()).apply_image(_scene())
        assert [int(v) for v in image[0, 0]] == [50 * (channel == red) for channel in range(3)]


def test_the_training_mapper_applies_the_file(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.INPUT.ALBUMENTATIONS = _file(tmp_path, "- HorizontalFlip: {p: 1}")
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.RANDOM_FLIP = "none"
    annotation = {"bbox": BOX, "bbox_mode": 1, "category_id": 0}
    record = {"file_name": str(image(tmp_path / "a.png")), "width": 100, "height": 80, "annotations": [annotation]}
    mapped = build_train_mapper(cfg)(record)
    assert mapped["instances"].gt_boxes.tensor[0].tolist() == pytest.approx([60, 20, 90, 60], abs=1.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- HorizontlFlip", "no transform 'HorizontlFlip'. Did you mean 'HorizontalFlip'"),
        ("- Lambda", "no transform 'Lambda'"),
        ("- os.system: {}", "no transform 'os.system'"),
        ("- HorizontalFlip: {q: 1}", "no argument 'q'"),
        ("- HorizontalFlip: {p: 7}", "cannot be used with"),
        ("- RandomCrop: {height: 900, width: 900, p: 1}", "cannot be used with"),
        ("- ToFloat: {p: 1}", "no uint8 image"),
        ("- [1, 2]", "Expected a name with its arguments"),
        ("HorizontalFlip", "is no list of transforms"),
        ("- !!python/object/apply:os.system ['true']", "not a safe"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_augmentation(_file(tmp_path, text))


def test_a_missing_file_or_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no file '.*gone.yaml'"):
        load_augmentation(str(tmp_path / "gone.yaml"))
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[augment\]'"):
        load_augmentation(_file(tmp_path, "- HorizontalFlip"))
