"""What a format of data set folders is, what a recognized folder is, and what all readers do."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from d2_ext.data.formats.listing import Listing
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

__all__ = [
    "DataFolder",
    "Format",
    "Records",
    "Split",
    "horizontal_box",
    "is_ignore_class",
    "log_records",
    "register_records",
    "split_of",
    "to_annotation",
]

Records = list[dict[str, Any]]

_SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "minival": "val",
    "test": "test",
    "testing": "test",
}
# Classes of the published sets that mean "neither an object nor background", without case, spaces and punctuation.
_IGNORE_CLASSES = {"dontcare", "ignore", "ignored", "ignoreregion", "ignoredregion", "ignoreregions", "ignoredregions"}


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        name: "train", "val", "test", or "all" where the folder has one part only, without such a name.
        num_images: how many records :attr:`read` returns, known before they are read.
        source: where it comes from, in words.
        read: gives Detectron2's data set dicts (boxes XYWH px; ``ignore_regions`` XYWH px where the format has them);
            reports what is wrong to its argument.
        num_boxes: objects, if they are known before reading.
        json_file: a COCO json that says exactly what :attr:`read` gives, if there is one.
    """

    name: str
    num_images: int
    source: str
    read: Callable[[Problems], Records]
    num_boxes: int | None = None
    json_file: str | None = None


@dataclass(frozen=True)
class DataFolder:
    """A folder of which format, classes and parts are known.

    Attributes:
        root: the folder.
        format: name of the format.
        classes: names in the order of ``category_id`` 0, 1, ...
        splits: its parts.
        notes: what was seen, repaired and left out, a sentence each.
        metadata: for ``MetadataCatalog``, without ``thing_classes``.
        has_ignore_regions: whether records may have them.
        has_masks: whether annotations may have a ``segmentation``.
    """

    root: Path
    format: str
    classes: tuple[str, ...]
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    has_ignore_regions: bool = False
    has_masks: bool = False


class Format(Protocol):
    """A format of data set folders. One file of this room holds all that is known of it.

    Attributes:
        name: for ``DATASETS.FORMAT`` and messages.
        expected: what a folder in this format holds, a few words for messages.
    """

    name: str
    expected: str

    def look(self, listing: Listing) -> str:
        """Evidence that a folder is in this format; empty if there is none. No image is opened."""

    def open(self, listing: Listing) -> DataFolder:
        """Find the splits and classes of a folder in this format; records are read later, by :attr:`Split.read`.

        Raises:
            DatasetError: for annotations that cannot be used.
        """


def split_of(text: str) -> str | None:
    """The part of a data set that a file or folder name speaks of.

    Example:
        >>> split_of("instances_train2017"), split_of("valid"), split_of("labels")
        ('train', 'val', None)
    """
    found = {_SPLIT_OF_WORD[word] for word in re.findall("[a-z]+", text.lower()) if word in _SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else None


def is_ignore_class(name: str) -> bool:
    """Whether a class of this name marks regions to be ignored.

    Example:
        >>> is_ignore_class("DontCare"), is_ignore_class("ignored regions"), is_ignore_class("car")
        (True, True, False)
    """
    return re.sub("[^a-z]", "", name.lower()) in _IGNORE_CLASSES


def horizontal_box(rotated: Sequence[float]) -> list[float]:
    """The smallest box with horizontal sides around a rotated one.

    Args:
        rotated: center x and y, width and height in px, angle in radians. Its direction does not matter: the box around
            is that of the mirrored one, too.

    Returns:
        XYWH px; a box without area where a side is not above 0.

    Example:
        >>> [round(x, 6) for x in horizontal_box([50, 40, 20, 10, math.pi / 2])]
        [45.0, 30.0, 10.0, 20.0]
    """
    x, y, width, height, angle = rotated
    if width <= 0 or height <= 0:
        return [x, y, 0.0, 0.0]
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    sides = width * cosine + height * sine, width * sine + height * cosine
    return [x - sides[0] / 2, y - sides[1] / 2, *sides]


def to_annotation(box: list[float], category_id: int, *, crowd: bool = False) -> dict[str, Any]:
    """Detectron2's annotation of a box XYWH px."""
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, "iscrowd": int(crowd)}


def register_records(
    name: str, load: Callable[[], Records], classes: Sequence[str], metadata: Mapping[str, Any]
) -> None:
    """Register a data set that is read when it is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        load: gives Detectron2's data set dicts.
        classes: names in the order of ``category_id``.
        metadata: what else ``MetadataCatalog`` knows of it.

    Raises:
        DatasetError: if the name is taken.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"A data set '{name}' is already registered. Choose another name.")
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(thing_classes=list(classes), **metadata)


def log_records(logger: logging.Logger, source: object, records: Records, problems: Problems) -> None:
    """Log how much a reader found, and how much it left out."""
    boxes, regions = (sum(len(r.get(key, ())) for r in records) for key in ("annotations", "ignore_regions"))
    logger.info("%s: %d images, %d boxes, %d ignore regions", source, len(records), boxes, regions)
    problems.log_dropped(logger, source)
