"""YOLO folders: a txt an image with lines ``class x y w h``, center and sides as shares of the image's.

The images and labels lie as ``images/`` and ``labels/`` (with folders for the splits above or below) or side by side;
a ``data.yaml`` with names and splits is followed if it is there, and so are lists of images (``train.txt``), as in
CVAT's YOLO 1.1 with its ``obj.data`` and ``obj.names``. Lines of polygons, ``class x y x y x y ...``, become
masks and their boxes. An image without a label file, or with an empty one, shows no object.
"""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from d2_ext.data.formats.base import (
    DataFolder,
    Records,
    Split,
    is_ignore_class,
    log_records,
    split_of,
    to_annotation,
)
from d2_ext.data.formats.listing import Listing
from d2_ext.data.parsing import read_lines
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError
from d2_ext.files import read_yaml
from d2_ext.images import IMAGE_SUFFIXES, read_sizes

__all__ = ["YOLO"]

SPLIT_KEYS = ("train", "val", "valid", "test")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
SLACK = 0.01  # by how much a share may leave 0..1; tools that round write such
_LABEL_LINE = re.compile(r"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", re.IGNORECASE)
_CLASS = re.compile("[0-9]{1,4}")  # a class of a data set whose classes have no names

_logger = logging.getLogger(__name__)

Item = tuple[str, str]  # folder and name of an image, as in Listing.folders
Description = tuple[Path, dict[str, Any]]  # path and content of a data.yaml
Missing = dict[str, list[tuple[str, str]]]  # split -> where an image is listed, and its name there


class YOLO:
    """The format; see the module."""

    name = "yolo"
    expected = "labels/*.txt beside images/"

    def look(self, listing: Listing) -> str:
        """A data.yaml, or the first label file that has a line of the form."""
        description = _find_yaml(listing)
        if description is not None:
            return f"{description[0].name}: names and splits of a YOLO data set"
        if "obj.data" in listing.name_sets[""]:
            return "obj.data: names and lists of a YOLO data set"
        for folder in listing.folders:
            for name in listing.images(folder)[:50]:
                label = _label(listing, (folder, name))
                if label is not None and _LABEL_LINE.match(label.read_text(errors="replace").strip().split("\n")[0]):
                    return f"{listing.relative(label)}: lines 'class x y w h' beside images"
        return ""

    def open(self, listing: Listing) -> DataFolder:
        """Find images, labels and class names.

        Raises:
            DatasetError: for a description that is wrong, and a folder without images.
        """
        description = _find_yaml(listing)
        notes: list[str] = []
        missing: Missing = {}
        items = _items_of_yaml(listing, *description, notes, missing) if description else _find_items(listing, missing)
        for split, absent in missing.items():
            count = len(absent) + len(items[split])
            notes.append(f"{split}: {len(absent)} of {count} images are missing and left out, first: {absent[0][1]}")
        items = {split: found for split, found in items.items() if found}
        if not items:
            raise DatasetError(f"'{listing.root}' holds no images with YOLO labels. Expected images/ beside labels/.")
        notes += _notes_on_unused(listing, items)
        labeled = {split: found for split, found in items.items() if any(_label(listing, item) for item in found)}
        notes += [
            f"{split}: {len(found)} images without any label file are not used"
            for split, found in items.items()
            if split not in labeled
        ]

        names = _find_names(listing, description)
        if not names:
            highest = 0
            for label in (_label(listing, item) for found in labeled.values() for item in found):
                for line in label.read_text(errors="replace").splitlines() if label else ():
                    word = line.split(maxsplit=1)[0] if line.strip() else "0"
                    if _CLASS.fullmatch(word):  # others are reported when the lines are read
                        highest = max(highest, int(word))
            names = tuple(f"class_{i}" for i in range(highest + 1))
            notes.append(
                f"no file names the classes: {len(names)} are numbered (data.yaml or classes.txt can name them)"
            )
        ignored = {i: name for i, name in enumerate(names) if is_ignore_class(name)}
        notes += [f"class '{name}' marks regions to be ignored; it is not learned" for name in ignored.values()]
        classes = tuple(name for i, name in enumerate(names) if i not in ignored)
        contiguous = {i: classes.index(name) for i, name in enumerate(names) if i not in ignored}

        splits = []
        for split, found in labeled.items():
            folders = dict.fromkeys(folder for folder, _ in found)
            parts = [f"{folder or '.'} with labels in {_label_folder(listing, folder) or '.'}" for folder in folders]
            source = ", ".join(parts[:2]) + (f" and {len(parts) - 2} folders more" if len(parts) > 2 else "")
            splits.append(
                Split(
                    split,
                    len(found),
                    source,
                    partial(_read, listing, found, missing.get(split, []), contiguous, frozenset(ignored)),
                )
            )
        return DataFolder(
            root=listing.root,
            format=self.name,
            classes=classes,
            splits=tuple(splits),
            notes=tuple(notes),
            metadata={"evaluator_type": "coco", **({"coco_ignore_regions": True} if ignored else {})},
            has_ignore_regions=bool(ignored),
            has_masks=True,
        )


def _find_yaml(listing: Listing) -> Description | None:
    """The file with ``names`` and paths of splits, at the top of the folder; None if there is none."""
    found = []
    for name in listing.folders[""]:
        if name.lower().endswith((".yaml", ".yml")):
            path = listing.path("", name)
            content = read_yaml(path, DatasetError)
            if isinstance(content, dict) and "names" in content and any(key in content for key in SPLIT_KEYS):
                found.append((path, content))
    if len(found) > 1:
        names = ", ".join(path.name for path, _ in found)
        raise DatasetError(f"'{listing.root}' has several descriptions of a YOLO data set: {names}. Keep one.")
    return found[0] if found else None


def _find_names(listing: Listing, description: Description | None) -> tuple[str, ...]:
    """Class names from the description or a file of names; empty if there are none."""
    if description is not None:
        names = description[1]["names"]
        if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
            names = [names[i] for i in range(len(names))]
        if not isinstance(names, list) or not names:
            raise DatasetError(f"'{description[0]}': 'names' is {names!r}. Expected a list, or numbers from 0.")
        return tuple(str(name) for name in names)
    for folder in ("", *(f for f in listing.folders if "/" not in f and f)):
        for name in listing.folders[folder]:
            if name in NAME_FILES or name.endswith(".names"):
                lines = read_lines(listing.path(folder, name))
                return tuple(line.strip() for line in lines if line.strip())
    return ()


def _find_items(listing: Listing, missing: Missing) -> dict[str, list[Item]]:
    """Split -> its images, by lists (train.txt, ...) or folders; "all" where there are no splits."""
    for above in (folder for folder in listing.folders if "/" not in folder):  # the top first
        lists = {}
        for name in listing.folders[above]:
            part = split_of(PurePosixPath(name).stem) if name.endswith(".txt") else None
            if part is not None:
                with open(listing.path(above, name), encoding="utf-8", errors="replace") as file:
                    if file.readline().strip().lower().endswith(IMAGE_SUFFIXES):
                        lists[part] = listing.path(above, name)
        if "train" in lists:
            return {split: _items_of_list(listing, path, split, missing) for split, path in lists.items()}
    items: dict[str, list[Item]] = {}
    for folder in listing.folders:
        images = listing.images(folder)
        if images and any(name.endswith(".txt") for name in listing.name_sets[_label_folder(listing, folder)]):
            parts = [split_of(part) for part in folder.split("/")]
            split = next((part for part in reversed(parts) if part), "all")
            items.setdefault(split, []).extend((folder, name) for name in images)
    return items


def _items_of_yaml(
    listing: Listing, path: Path, content: dict[str, Any], notes: list[str], missing: Missing
) -> dict[str, list[Item]]:
    """Split -> its images. Descriptions often carry paths of the machine they were made on."""
    base = str(content.get("path") or "")
    items: dict[str, list[Item]] = {}
    for key in SPLIT_KEYS:
        entries = content.get(key)
        if not entries:
            continue
        split = items.setdefault(split_of(key) or key, [])
        for entry in map(str, entries if isinstance(entries, list) else [entries]):
            # As written; without the base; as below the folder although written as "../train/images" (Roboflow).
            upwards = re.sub(r"^(\.\./)+", "", entry)
            tried = [listing.root / base / entry, listing.root / entry, listing.root / upwards]
            places = [(place, listing.relative(place)) for place in tried]
            inside = next((i for p, i in places if i is not None and (i in listing.folders or p.is_file())), None)
            if inside is None and key == "test":  # nothing depends on it, and tools name it whether it is there or not
                notes.append(f"{path.name}: there is nothing at {entry!r}, so '{key}' is left out")
                continue
            if inside is None:
                raise DatasetError(
                    f"'{path}', {key!r}: nothing at {' or '.join(dict.fromkeys(map(str, tried)))}. "
                    f"Expected a folder of images or a list of them below '{listing.root}'. Correct the entry."
                )
            if inside.endswith(".txt"):
                split += _items_of_list(listing, listing.root / inside, split_of(key) or key, missing)
            else:
                split += [(folder, name) for folder in listing.below(inside) for name in listing.images(folder)]
    return items


def _items_of_list(listing: Listing, path: Path, split: str, missing: Missing) -> list[Item]:
    """The images that a list names; those that are not there are added to ``missing``.

    Raises:
        DatasetError: none of them is there.
    """

    def item_at(place: Path) -> Item | None:
        folder, _, name = (listing.relative(place) or "").rpartition("/")
        return (folder, name) if name in listing.name_sets.get(folder, ()) else None

    items: list[Item] = []
    absent: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(path), start=1):
        name = line.strip()
        if not name:
            continue
        # As written, beside the list or at the top; without the folders that it was exported from (CVAT writes
        # data/obj_train_data/a.jpg, others a path of their machine); or in images/.
        parts = PurePosixPath(name).parts
        tails = [listing.root.joinpath(*parts[n:]) for n in range(1, len(parts))]
        places = [path.parent / name, listing.root / name, *tails, listing.root / "images" / parts[-1]]
        found = next((item for place in places if (item := item_at(place)) is not None), None)
        if found is None:
            absent.append((f"{path}, line {number}", name))
        else:
            items.append(found)
    if absent and not items:
        raise DatasetError(
            f"{path} names {len(absent)} images, and none of them is below '{listing.root}', first: {absent[0][1]!r}. "
            "Put them there; an annotation tool may have exported the labels alone."
        )
    if absent:
        missing.setdefault(split, []).extend(absent)
    return items


def _label_folder(listing: Listing, folder: str) -> str:
    """Where the labels of a folder of images are: ``images`` exchanged for ``labels``, below it, or the folder."""
    parts = folder.split("/")
    if "images" in parts:
        index = len(parts) - 1 - parts[::-1].index("images")
        swapped = "/".join([*parts[:index], "labels", *parts[index + 1 :]])
        if swapped in listing.folders:
            return swapped
    below = f"{folder}/labels" if folder else "labels"
    return below if below in listing.folders else folder


def _label(listing: Listing, item: Item) -> Path | None:
    """The label file of an image, if it has one."""
    labels = _label_folder(listing, item[0])
    name = f"{PurePosixPath(item[1]).stem}.txt"
    return listing.path(labels, name) if name in listing.name_sets[labels] else None


def _notes_on_unused(listing: Listing, items: dict[str, list[Item]]) -> list[str]:
    """Label files without an image, and images of folders that no split uses."""
    used = {item for found in items.values() for item in found}
    stems: dict[str, set[str]] = {}
    for folder, name in used:
        stems.setdefault(_label_folder(listing, folder), set()).add(PurePosixPath(name).stem)
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


def _read(
    listing: Listing,
    items: list[Item],
    missing: list[tuple[str, str]],
    contiguous: dict[int, int],
    ignored: frozenset[int],
    problems: Problems,
) -> Records:
    """Detectron2's data set dicts in the order of the images."""
    for where, name in missing:
        problems.dropped("missing images", where, name)
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
        lines = [] if label is None else label.read_text(encoding="utf-8", errors="replace").splitlines()
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{label}, line {line_number}"
            try:
                category, shares = _parse_line(line)
            except ValueError as error:
                advice = "Expected 'class x y w h' as shares of the image's sides. Correct or delete the line."
                problems.error("malformed line", where, f"{line.strip()[:80]!r} {error}. {advice}")
                continue
            if category not in contiguous and category not in ignored:
                count = len(contiguous) + len(ignored)
                text = f"class {category}, but there are {count} (0 to {count - 1}). Correct it."
                problems.error("unknown class", where, text)
                continue

            # Shares become px: of a polygon with its enclosing box, or of a box given by its center.
            polygon = [v * size[i % 2] for i, v in enumerate(shares)] if len(shares) > 4 else []
            if polygon:
                xs, ys = polygon[::2], polygon[1::2]
                box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            else:
                x, y, w, h = shares
                box = [(x - w / 2) * size[0], (y - h / 2) * size[1], w * size[0], h * size[1]]
            if not box_in_image(box, size, where, problems):
                continue
            if category in ignored:
                record["ignore_regions"].append(box)
            else:
                shape = {"segmentation": [polygon]} if polygon else {}
                record["annotations"].append({**to_annotation(box, contiguous[category]), **shape})
        records.append(record)
    log_records(_logger, listing.root, records, problems)
    if empty:
        _logger.warning("%s: %d images have no label file and count as empty", listing.root, empty)
    return records


def _parse_line(line: str) -> tuple[int, list[float]]:
    """Class, and 4 shares or a polygon's; a ValueError says what is wrong."""
    fields = line.split()
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
