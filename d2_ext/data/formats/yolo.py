"""YOLO folders: a txt an image with lines ``class x y w h``, centre and sides as shares of the image's.

The images and labels lie as ``images/`` and ``labels/`` (with folders for the splits above or below) or side by side;
a ``data.yaml`` with names and splits is followed if it is there. Lines of polygons, ``class x y x y x y ...``, become
masks and their boxes. An image without a label file, or with an empty one, shows no object.
"""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from d2_ext.data.formats.base import DataFolder, Records, Split, is_ignore_class, to_annotation
from d2_ext.data.formats.listing import Listing
from d2_ext.data.formats.yolo_layout import Item, find_items, find_label_example, find_names, find_yaml, label_folder
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError
from d2_ext.images import read_sizes

__all__ = ["look", "open_folder"]

_CLASS = re.compile("[0-9]{1,4}")  # a class of a data set whose classes have no names
SLACK = 0.01  # by how much a share may leave 0..1; tools that round write such

_logger = logging.getLogger(__name__)


def look(listing: Listing) -> str:
    """Evidence that the folder is in this format; empty if there is none."""
    description = find_yaml(listing)
    if description is not None:
        return f"{description.path.name}: names and splits of a YOLO data set"
    example = find_label_example(listing)
    return f"{example}: lines 'class x y w h' beside images" if example else ""


def open_folder(listing: Listing) -> DataFolder:
    """Find images, labels and class names.

    Raises:
        DatasetError: for a description that is wrong, and a folder without images.
    """
    description = find_yaml(listing)
    items = {split: found for split, found in find_items(listing, description).items() if found}
    if not items:
        raise DatasetError(f"'{listing.root}' holds no images with YOLO labels. Expected images/ beside labels/.")
    notes = _notes(listing, items)
    labelled = {split: found for split, found in items.items() if any(_label(listing, item) for item in found)}
    notes += [
        f"{split}: {len(found)} images without any label file are not used"
        for split, found in items.items()
        if split not in labelled
    ]
    names = find_names(listing, description)
    if not names:
        names = _numbered_classes(listing, labelled)
        notes.append(f"no file names the classes: {len(names)} are numbered (data.yaml or classes.txt can name them)")
    ignored = {i: name for i, name in enumerate(names) if is_ignore_class(name)}
    notes += [f"class '{name}' marks regions to be ignored; it is not learnt" for name in ignored.values()]
    classes = tuple(name for i, name in enumerate(names) if i not in ignored)
    contiguous = {i: classes.index(name) for i, name in enumerate(names) if i not in ignored}
    splits = [
        Split(
            split, len(found), _source(listing, found), partial(_read, listing, found, contiguous, frozenset(ignored))
        )
        for split, found in labelled.items()
    ]
    return DataFolder(
        root=listing.root,
        format="yolo",
        classes=classes,
        splits=tuple(splits),
        notes=tuple(notes),
        metadata={"evaluator_type": "coco", **({"coco_ignore_regions": True} if ignored else {})},
        has_ignore_regions=bool(ignored),
        has_masks=True,
    )


def _label(listing: Listing, item: Item) -> Path | None:
    labels = label_folder(listing, item[0])
    name = f"{PurePosixPath(item[1]).stem}.txt"
    return listing.path(labels, name) if name in listing.name_sets[labels] else None


def _notes(listing: Listing, items: dict[str, list[Item]]) -> list[str]:
    """Label files without an image, and images of folders that no split uses."""
    used = {item for found in items.values() for item in found}
    stems: dict[str, set[str]] = {}
    for folder, name in used:
        stems.setdefault(label_folder(listing, folder), set()).add(PurePosixPath(name).stem)
    others = {folder: set(listing.images(folder)) - {n for f, n in used if f == folder} for folder in listing.folders}
    notes = [
        f"{folder or '.'}: {len(names)} images belong to no split and are not used"
        for folder, names in others.items()
        if names
    ]
    for labels, known in stems.items():
        odd = [n for n in listing.folders[labels] if n.endswith(".txt") and n[:-4] not in known and n[:-4] != "classes"]
        odd = odd if labels else [n for n in odd if n[:-4] not in ("train", "val", "valid", "test")]
        if odd and not any(listing.path(labels) == listing.path(folder) for folder in others if others[folder]):
            notes.append(f"{labels or '.'}: {len(odd)} label files have no image, first: {odd[0]}")
    return notes


def _source(listing: Listing, items: list[Item]) -> str:
    folders = dict.fromkeys(folder for folder, _ in items)
    parts = [f"{folder or '.'} with labels in {label_folder(listing, folder) or '.'}" for folder in folders]
    return ", ".join(parts[:2]) + (f" and {len(parts) - 2} folders more" if len(parts) > 2 else "")


def _numbered_classes(listing: Listing, items: dict[str, list[Item]]) -> tuple[str, ...]:
    highest = 0
    for found in items.values():
        for item in found:
            label = _label(listing, item)
            for line in label.read_text(errors="replace").splitlines() if label else ():
                word = line.split(maxsplit=1)[0] if line.strip() else "0"
                if _CLASS.fullmatch(word):  # others are reported when the lines are read
                    highest = max(highest, int(word))
    return tuple(f"class_{i}" for i in range(highest + 1))


def _read(
    listing: Listing, items: list[Item], contiguous: dict[int, int], ignored: frozenset[int], problems: Problems
) -> Records:
    """Detectron2's data set dicts in the order of the images."""
    images = [listing.path(*item) for item in items]
    records, empty = [], 0
    for number, (item, image, size) in enumerate(zip(items, images, read_sizes(images)), start=1):
        if isinstance(size, DatasetError):
            problems.refuse("unreadable image", str(image), size)
            continue
        record: dict[str, Any] = {"file_name": str(image), "image_id": number, "width": size[0], "height": size[1]}
        record |= {"annotations": [], **({"ignore_regions": []} if ignored else {})}
        label = _label(listing, item)
        empty += label is None
        for line, text in enumerate(_lines(label), start=1):
            if text.strip():
                _add(record, text, f"{label}, line {line}", contiguous, ignored, problems)
        records.append(record)
    boxes = sum(len(record["annotations"]) for record in records)
    _logger.info("%s: %d images, %d boxes", listing.root, len(records), boxes)
    if empty:
        _logger.warning("%s: %d images have no label file and count as empty", listing.root, empty)
    problems.log_dropped(_logger, listing.root)
    return records


def _lines(label: Path | None) -> list[str]:
    return [] if label is None else label.read_text(encoding="utf-8", errors="replace").splitlines()


def _add(
    record: dict[str, Any],
    text: str,
    where: str,
    contiguous: dict[int, int],
    ignored: frozenset[int],
    problems: Problems,
) -> None:
    """Add the object of a line to the record."""
    try:
        category, shares = _parse_line(text)
    except ValueError as error:
        advice = "Expected 'class x y w h' as shares of the image's sides. Correct or delete the line."
        problems.error("malformed line", where, f"{text.strip()[:80]!r} {error}. {advice}")
        return
    if category not in contiguous and category not in ignored:
        count = len(contiguous) + len(ignored)
        problems.error(
            "unknown class", where, f"class {category}, but there are {count} (0 to {count - 1}). Correct it."
        )
        return
    width, height = record["width"], record["height"]
    polygon = [v * (width, height)[i % 2] for i, v in enumerate(shares)] if len(shares) > 4 else []
    box = _box_of_polygon(polygon) if polygon else _box_of_shares(shares, width, height)
    if not box_in_image(box, (width, height), where, problems):
        return
    if category in ignored:
        record["ignore_regions"].append(box)
        return
    annotation = to_annotation(box, contiguous[category])
    if polygon:
        annotation["segmentation"] = [polygon]
    record["annotations"].append(annotation)


def _parse_line(text: str) -> tuple[int, list[float]]:
    """Class, and 4 shares or a polygon's; a ValueError says what is wrong."""
    fields = text.split()
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        hint = "; a sixth is a detector's score, not a label" if len(fields) == 6 else ""
        raise ValueError(f"has {len(fields)} fields instead of 5{hint}")
    try:
        values = [float(field) for field in fields]
    except ValueError:
        raise ValueError("contains something that is not a number") from None
    if not math.isfinite(sum(values)):
        raise ValueError("contains a number that is not finite")
    if values[0] != int(values[0]) or values[0] < 0:
        raise ValueError(f"has class {fields[0]}")
    odd = next((v for v in values[1:] if not -SLACK <= v <= 1 + SLACK), None)
    if odd is not None:
        raise ValueError(f"contains {odd:g}, which is no share (0 to 1) of a side")
    return int(values[0]), values[1:]


def _box_of_shares(shares: list[float], width: int, height: int) -> list[float]:
    x, y, w, h = shares
    return [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]


def _box_of_polygon(polygon: list[float]) -> list[float]:
    xs, ys = polygon[::2], polygon[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
