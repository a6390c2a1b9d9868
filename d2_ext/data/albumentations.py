"""Transforms of albumentations (optional package) as one Detectron2 augmentation.

The file that ``INPUT.ALBUMENTATIONS`` names is a YAML list of transforms, each with its arguments::

    - RandomBrightnessContrast: {p: 0.3, brightness_limit: 0.2}
    - MotionBlur: {p: 0.1}
    - Affine: {p: 0.5, rotate: [-10, 10]}

They are applied in this order. Names are classes of albumentations, arguments plain values: nothing of the file is run.
Boxes follow as the enclosing boxes of their moved corners.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean, install_hint
from d2_ext.files import read_yaml

import numpy as np
from detectron2.data import transforms as T

__all__ = ["AlbumentationsAugmentation", "load_augmentation"]

_EXAMPLE = "- RandomBrightnessContrast: {p: 0.3}"
_TRIAL_SIZE = (96, 128)


def load_augmentation(file: str, image_format: str = "RGB") -> AlbumentationsAugmentation:
    """Read a file of transforms and try each of them.

    Args:
        file: YAML, see the module.
        image_format: ``INPUT.FORMAT``; the transforms always see RGB.

    Raises:
        ConfigError: without the package, for a missing or unsafe file, an unknown transform or argument, and a
            transform that needs more than an image or gives something else than a uint8 image.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"INPUT.ALBUMENTATIONS: no file '{path.absolute()}'. Expected a YAML list like '{_EXAMPLE}'.")
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"'{path}' is no list of transforms. Expected lines like '{_EXAMPLE}'.")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for newer versions
    try:
        import albumentations as A
    except ImportError:
        raise ConfigError(
            f"INPUT.ALBUMENTATIONS needs the package albumentations. {install_hint('augment')}, or set the key to ''."
        ) from None
    base = (A.ImageOnlyTransform, A.DualTransform)
    known = [n for n in dir(A) if isinstance(getattr(A, n), type) and issubclass(getattr(A, n), base) and n != "Lambda"]

    transforms = []
    for number, entry in enumerate(entries, start=1):
        # An entry is ``Name`` or ``{Name: {argument: value}}``.
        where = f"'{path}', transform {number}"
        entry = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry.values())) or {}, dict):
            raise ConfigError(f"{where} is {entry!r}. Expected a name with its arguments, like '{_EXAMPLE}'.")
        name, arguments = next(iter(entry.items()))
        if name not in known:
            raise ConfigError(
                f"{where}: albumentations {A.__version__} has no transform {name!r}. {did_you_mean(name, known)}"
            )
        # It is made and tried on a small image now, not in the middle of a training.
        try:
            transform = getattr(A, name)(**(arguments or {}))
            accepted = {"p", *transform.get_transform_init_args_names()}
            for odd in (argument for argument in arguments or {} if argument not in accepted):
                raise ValueError(f"no argument {odd!r}. {did_you_mean(odd, accepted)}")  # albumentations only warns
            image = transform(image=np.zeros((*_TRIAL_SIZE, 3), np.uint8), force_apply=True)["image"]
        except Exception as error:  # its own checks raise many types; all of them mean an unusable entry
            raise ConfigError(f"{where}: {name} cannot be used with {arguments}: {error}. Correct it.") from error
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ConfigError(f"{where}: {name} makes no uint8 image of three channels. Take it out of the list.")
        transforms.append(transform)
    return AlbumentationsAugmentation(transforms, swap_channels=image_format == "BGR")


class AlbumentationsAugmentation(T.Augmentation):
    """Draws and applies albumentations' transforms one after the other.

    Their random numbers come from numpy's global generator, which Detectron2 seeds in each loader process.

    Args:
        transforms: of albumentations.
        swap_channels: images are BGR, the transforms get RGB.
    """

    def __init__(self, transforms: list[Any], *, swap_channels: bool) -> None:
        self.transforms = transforms
        self.swap_channels = swap_channels

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Apply the transforms to an (H, W, 3) uint8 image; the result carries it and moves points likewise."""
        changed = image[:, :, ::-1] if self.swap_channels else image
        changed = np.ascontiguousarray(changed)
        applied = []
        for transform in self.transforms:
            transform.set_random_seed(int(np.random.randint(2**31)))
            changed = transform(image=changed)["image"]
            if transform.params:  # empty where chance left the image alone
                applied.append((transform, transform.params))
        changed = changed[:, :, ::-1] if self.swap_channels else changed
        return _Applied(np.ascontiguousarray(changed), applied)

    def __repr__(self) -> str:
        return f"Albumentations({', '.join(type(t).__name__ for t in self.transforms)})"


class _Applied(T.Transform):
    """What albumentations did to one image.

    Args:
        image: the result.
        applied: transforms with the parameters that they drew.
    """

    def __init__(self, image: np.ndarray, applied: list[tuple[Any, dict[str, Any]]]) -> None:
        super().__init__()
        self.image = image
        self.moves = [(t, params) for t, params in applied if hasattr(t, "apply_to_keypoints")]

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """The image that the augmentation has made; (H', W', 3) uint8."""
        return self.image

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move (N, 2) points x, y px; they may leave the image."""
        points = np.zeros((len(coords), 5), np.float32)  # x, y, z, angle, scale
        points[:, :2] = coords
        for transform, params in self.moves:
            points = np.asarray(transform.apply_to_keypoints(points, **params), np.float32)
        return points[:, :2].astype(coords.dtype)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Not possible: only images and points are moved."""
        raise NotImplementedError("INPUT.ALBUMENTATIONS moves images and boxes, no segmentation maps")
