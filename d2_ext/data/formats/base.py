"""What a recognised folder is, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2_ext.data.problems import Problems

from detectron2.structures import BoxMode

__all__ = ["DataFolder", "Records", "Split", "is_ignore_class", "split_of", "to_annotation"]

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


def to_annotation(box: list[float], category_id: int, *, crowd: bool = False) -> dict[str, Any]:
    """Detectron2's annotation of a box XYWH px."""
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, "iscrowd": int(crowd)}
