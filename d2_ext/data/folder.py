"""Register a folder of any known format under the names ``own_<folder>_<split>``."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from d2_ext.data.formats.base import DataFolder, Records, Split
from d2_ext.data.formats.recognize import recognize
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["OwnData", "describe", "hold_out", "register_folder"]

DEFAULT_HOLD_OUT = 0.2

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnData:
    """A registered folder.

    Attributes:
        data: what was recognized.
        train: names for ``DATASETS.TRAIN``.
        test: names for ``DATASETS.TEST``.
        images: registered name -> number of images.
        sources: registered name -> where they come from, in words.
        notes: how training and evaluation were chosen, a sentence each.
    """

    data: DataFolder
    train: tuple[str, ...]
    test: tuple[str, ...]
    images: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# (folder, format, share, seed) -> what is registered for it in this process.
_registered: dict[tuple[str, str, float, int], OwnData] = {}


def register_folder(
    folder: str | Path, *, data_format: str = "", share: float = DEFAULT_HOLD_OUT, seed: int = 0
) -> OwnData:
    """Recognize a folder and register its splits; they are read when they are first asked for.

    A folder with one split gets three names: ``own_<folder>_all``, and ``_train`` and ``_val`` of disjoint images. A
    second call with the same arguments gives the first one's result; a name that another folder had is taken over.

    Args:
        folder: see :func:`d2_ext.data.formats.recognize`.
        data_format: likewise.
        share: of the images that are held out where there is one split only, in (0, 1).
        seed: of the hold-out.

    Returns:
        Names, counts and what to tell the user.

    Raises:
        DatasetError: for a folder that cannot be used, or ``share`` outside (0, 1).
    """
    if not 0 < share < 1:
        raise DatasetError(f"A share of {share} cannot be held out. Expected a number between 0 and 1, such as 0.2.")
    key = (os.path.realpath(folder), data_format, share, seed)
    own = _registered.get(key)
    if own is None or any(name not in DatasetCatalog for name in own.images):
        data = recognize(folder, data_format)
        stem = "own_" + (re.sub(r"\W+", "_", Path(key[0]).name).strip("_") or "data")
        own = _register_parts(data, stem, share, seed) if len(data.splits) == 1 else _register_splits(data, stem)
        for other_key, other in list(_registered.items()):
            if other.images.keys() & own.images.keys():  # its names were taken over
                del _registered[other_key]
        _registered[key] = own
    return own


def _register_splits(data: DataFolder, stem: str) -> OwnData:
    names = {split.name: f"{stem}_{split.name}" for split in data.splits}
    for split in data.splits:
        _register(names[split.name], data, partial(_read, split), split.json_file)
    if "train" not in names:
        raise DatasetError(
            f"'{data.root}' has the splits {', '.join(names)}, but none to train on. Expected 'train'. Rename one, or "
            "give a folder with a single split, of which a part is held out."
        )
    test = next((split for split in ("val", "test") if split in names), None)
    if test is None:
        raise DatasetError(f"'{data.root}' has the splits {', '.join(names)}, but no val or test. Rename one.")
    unused = [name for split, name in names.items() if split not in ("train", test)]
    return OwnData(
        data=data,
        train=(names["train"],),
        test=(names[test],),
        images={names[split.name]: split.num_images for split in data.splits},
        sources={names[split.name]: split.source for split in data.splits},
        notes=tuple(f"{name} is not used; evaluate on it with DATASETS.TEST \"('{name}',)\"" for name in unused),
    )


def _register_parts(data: DataFolder, stem: str, share: float, seed: int) -> OwnData:
    split = data.splits[0]
    if split.num_images < 2:
        raise DatasetError(f"'{data.root}' has {split.num_images} image with annotations. Expected two at least.")
    held = min(max(1, round(split.num_images * share)), split.num_images - 1)
    names = [f"{stem}_{part}" for part in ("all", "train", "val")]
    _register(names[0], data, partial(_read, split), split.json_file)
    _register(names[1], data, lambda: hold_out(_read(split), data.root, share, seed)[0])
    _register(names[2], data, lambda: hold_out(_read(split), data.root, share, seed)[1])
    return OwnData(
        data=data,
        train=(names[1],),
        test=(names[2],),
        images=dict(zip(names, (split.num_images, split.num_images - held, held))),
        sources={names[0]: split.source, names[1]: "the rest", names[2]: f"held out by the seed {seed}"},
        notes=(
            f"the folder has one split, '{split.name}': {held} of its {split.num_images} images are held out for "
            f"evaluation (DATASETS.HOLD_OUT {share}, HOLD_OUT_SEED {seed}). Frames of one video can fall on both "
            "sides; then split by hand.",
        ),
    )


def hold_out(records: Records, root: Path, share: float, seed: int) -> tuple[Records, Records]:
    """Divide records into those to train on and those held out.

    Which images are held out depends on the seed and their paths below ``root`` only: not on their order, nor on the
    machine.

    Args:
        records: data set dicts with different ``file_name``.
        root: folder that the paths are taken relative to.
        share: held out, at least one and not all.
        seed: any whole number.
    """

    def rank(record: dict) -> str:
        inside = os.path.relpath(record["file_name"], root).replace(os.sep, "/")
        return hashlib.sha256(f"{seed}:{inside}".encode()).hexdigest()

    count = min(max(1, round(len(records) * share)), len(records) - 1)
    ranks = [rank(record) for record in records]
    limit = sorted(ranks)[count - 1]
    kept = [record for record, value in zip(records, ranks) if value > limit]
    return kept, [record for record, value in zip(records, ranks) if value <= limit]


def _read(split: Split) -> Records:
    """The records of a split; the first problem is an error."""
    return split.read(Problems())


def _register(name: str, data: DataFolder, read: Callable[[], Records], json_file: str | None = None) -> None:
    if name in DatasetCatalog:
        _logger.warning("The name '%s' is taken over by '%s'", name, data.root)
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, read)
    numbers = {i + 1: i for i in range(len(data.classes))}
    facts = {
        "image_root": str(data.root),
        "thing_dataset_id_to_contiguous_id": numbers,
        **data.metadata,
        **({"json_file": json_file} if json_file else {}),
    }
    MetadataCatalog.get(name).set(thing_classes=list(data.classes), **facts)


def describe(own: OwnData) -> str:
    """What was recognized, counted and chosen, for a log or a terminal."""
    data, width = own.data, max(len(name) for name in own.images)
    known = {f"_{split.name}": split.num_boxes for split in data.splits}
    names = ", ".join(data.classes[:20])
    names += f" and {len(data.classes) - 20} more" if len(data.classes) > 20 else ""
    lines = [f"{data.root}: format {data.format}, {len(data.classes)} classes: {names}"]
    for name, count in own.images.items():
        boxes = next((n for end, n in known.items() if name.endswith(end) and len(data.splits) > 1), None)
        counted = f"{count:>7} images" + (f" {boxes:>8} boxes" if boxes is not None else "")
        use = "train on" if name in own.train else "evaluate on" if name in own.test else ""
        lines.append(f"  {name:<{width}} {counted}  {use:<11}  {own.sources[name]}")
    return "\n".join(lines + [f"  - {note}" for note in (*data.notes, *own.notes)])
