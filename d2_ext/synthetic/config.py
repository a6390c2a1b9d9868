"""What a synthetic data set is made of: sizes, counts, seed, and the fingerprint that names its folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import os
from pathlib import Path

from d2_ext.errors import ConfigError, did_you_mean

CLASSES = ("car", "van", "person", "bike")
CLASS_COLORS = ((54, 125, 255), (255, 168, 38), (233, 58, 88), (60, 190, 112))  # RGB
SPLITS = ("train", "val")
GENERATOR_VERSION = 1
SIDE_RANGE_PX = (64, 4096)
OBJECT_RANGE_PX = (6, 60)
"""Longer side of every box that counts (``iscrowd`` 0), px of the image."""


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The recipe of one data set; equal recipes give equal bytes with equal versions of NumPy and OpenCV.

    Attributes:
        num_train: images of the split ``train``.
        num_val: images of the split ``val``.
        sizes: image sizes (width, height), px; each image draws one of them with equal chance.
        seed: every image depends on (seed, split, index) alone.
        empty_fraction: chance that an image holds no object, only distractors.
    """

    num_train: int = 500
    num_val: int = 100
    sizes: tuple[tuple[int, int], ...] = ((320, 320), (320, 320), (384, 256), (352, 288), (256, 352))
    seed: int = 0
    empty_fraction: float = 0.06

    def __post_init__(self) -> None:
        for name, count in (("num_train", self.num_train), ("num_val", self.num_val)):
            if count < 0:
                raise ConfigError(f"{name}={count} is negative. Give the number of images, 0 or more.")
        if not self.sizes:
            raise ConfigError("sizes is empty. Give at least one image size (width, height), such as (320, 320).")
        low, high = SIDE_RANGE_PX
        for size in self.sizes:
            if len(size) != 2 or not all(low <= side <= high for side in size):
                raise ConfigError(f"size {size} does not work. Give (width, height), each {low} to {high} px.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is negative. Give 0 or more.")
        if not 0.0 <= self.empty_fraction <= 1.0:
            raise ConfigError(f"empty_fraction={self.empty_fraction} is no chance. Give a number from 0 to 1.")

    def count(self, split: str) -> int:
        """Number of images of a split."""
        return {"train": self.num_train, "val": self.num_val}[check_split(split)]


def check_split(split: str) -> str:
    """Return the split's name if it exists.

    Raises:
        ConfigError: for any name but ``train`` and ``val``.
    """
    if split not in SPLITS:
        raise ConfigError(f"There is no split {split!r} of the synthetic data. {did_you_mean(split, SPLITS)}")
    return split


def fingerprint(config: SyntheticConfig) -> str:
    """Hash of the recipe and of the generator's own source, 10 hex digits.

    Since it is part of the folder's name, an edited generator makes new data and never serves old ones.
    """
    recipe = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256((recipe + _source_digest()).encode()).hexdigest()[:10]


@functools.lru_cache(maxsize=1)
def _source_digest() -> str:
    """Hash of the generator's files; read once, so that an edit does not move the data of a running process."""
    digest = hashlib.sha256()
    sources = importlib.resources.files("d2_ext.synthetic")
    for file in sorted(sources.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".py"):
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def default_root() -> Path:
    """Data root as Detectron2 chooses it: ``$DETECTRON2_DATASETS``, else ``./datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def split_folder(config: SyntheticConfig, root: str | os.PathLike[str], split: str) -> Path:
    """Folder of one split: ``<root>/synthetic_drone/v<version>-<fingerprint>/<split>``."""
    version = f"v{GENERATOR_VERSION}-{fingerprint(config)}"
    return Path(root) / "synthetic_drone" / version / check_split(split)
