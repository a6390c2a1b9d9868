"""Where the images, labels and class names of a YOLO folder are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from d2_ext.data.formats.base import split_of
from d2_ext.data.formats.listing import Listing
from d2_ext.data.images import IMAGE_SUFFIXES
from d2_ext.data.parsing import read_lines
from d2_ext.errors import DatasetError
from d2_ext.files import read_yaml

__all__ = ["Item", "find_items", "find_label_example", "find_names", "find_yaml", "label_folder"]

SPLIT_KEYS = ("train", "val", "valid", "test")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
LABEL_LINE = re.compile(r"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", re.IGNORECASE)

Item = tuple[str, str]  # folder and name of an image, as in Listing.folders


@dataclass(frozen=True)
class DataYaml:
    """A YOLO data set's own description: its path and content."""

    path: Path
    content: dict[str, Any]


def find_yaml(listing: Listing) -> DataYaml | None:
    """The file with ``names`` and paths of splits, at the top of the folder; None if there is none.

    Raises:
        DatasetError: for several, and one that is not safe, well-formed YAML.
    """
    found = []
    for name in listing.folders[""]:
        if name.lower().endswith((".yaml", ".yml")):
            path = listing.path("", name)
            content = read_yaml(path, DatasetError)
            if isinstance(content, dict) and "names" in content and any(key in content for key in SPLIT_KEYS):
                found.append(DataYaml(path, content))
    if len(found) > 1:
        names = ", ".join(item.path.name for item in found)
        raise DatasetError(f"'{listing.root}' has several descriptions of a YOLO data set: {names}. Keep one.")
    return found[0] if found else None


def find_label_example(listing: Listing) -> str:
    """The first label file that has a line of YOLO's form; empty if there is none."""
    for folder in listing.folders:
        images = listing.images(folder)
        labels = label_folder(listing, folder)
        texts = listing.name_sets.get(labels, ())
        for name in images[:50]:
            text = f"{PurePosixPath(name).stem}.txt"
            if text in texts:
                first = listing.path(labels, text).read_text(errors="replace").strip().split("\n")[0]
                if LABEL_LINE.match(first):
                    return f"{labels}/{text}" if labels else text
    return ""


def label_folder(listing: Listing, folder: str) -> str:
    """Where the labels of a folder of images are: ``images`` exchanged for ``labels``, below it, or the folder."""
    parts = folder.split("/")
    if "images" in parts:
        index = len(parts) - 1 - parts[::-1].index("images")
        swapped = "/".join([*parts[:index], "labels", *parts[index + 1 :]])
        if swapped in listing.folders:
            return swapped
    below = f"{folder}/labels" if folder else "labels"
    return below if below in listing.folders else folder


def find_names(listing: Listing, description: DataYaml | None) -> tuple[str, ...]:
    """Class names from the description or a file of names; empty if there are none.

    Raises:
        DatasetError: for names that are no list and no dict of 0, 1, ...
    """
    if description is not None:
        names = description.content["names"]
        if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
            names = [names[i] for i in range(len(names))]
        if not isinstance(names, list) or not names:
            raise DatasetError(f"'{description.path}': 'names' is {names!r}. Expected a list, or numbers from 0.")
        return tuple(str(name) for name in names)
    for folder in ("", *(f for f in listing.folders if "/" not in f and f)):
        for name in listing.folders[folder]:
            if name in NAME_FILES or name.endswith(".names"):
                lines = read_lines(listing.path(folder, name))
                return tuple(line.strip() for line in lines if line.strip())
    return ()


def find_items(listing: Listing, description: DataYaml | None) -> dict[str, list[Item]]:
    """Split -> its images; "all" where there are no splits.

    Raises:
        DatasetError: for a path of the description that leads nowhere, and lists that name missing images.
    """
    if description is not None:
        return _items_of_yaml(listing, description)
    texts = [name for name in listing.folders[""] if _is_list(listing, name)]
    lists = {part: name for name in texts if (part := split_of(name)) is not None}
    if lists.keys() >= {"train"}:
        return {split: _items_of_list(listing, listing.path("", name)) for split, name in lists.items()}
    items: dict[str, list[Item]] = {}
    for folder in listing.folders:
        images = listing.images(folder)
        if images and _has_labels(listing, folder):
            parts = [split_of(part) for part in folder.split("/")]
            split = next((part for part in reversed(parts) if part), "all")
            items.setdefault(split, []).extend((folder, name) for name in images)
    return items


def _has_labels(listing: Listing, folder: str) -> bool:
    labels = listing.name_sets[label_folder(listing, folder)]
    return any(name.endswith(".txt") for name in labels)


def _is_list(listing: Listing, name: str) -> bool:
    if not name.endswith(".txt") or split_of(PurePosixPath(name).stem) is None:
        return False
    with open(listing.path("", name), encoding="utf-8", errors="replace") as file:
        return file.readline().strip().lower().endswith(IMAGE_SUFFIXES)


def _items_of_yaml(listing: Listing, description: DataYaml) -> dict[str, list[Item]]:
    items: dict[str, list[Item]] = {}
    for key in SPLIT_KEYS:
        entries = description.content.get(key)
        if not entries:
            continue
        split = items.setdefault(split_of(key) or key, [])
        for entry in entries if isinstance(entries, list) else [entries]:
            inside = _resolve(listing, description, key, str(entry))
            if inside.endswith(".txt"):
                split += _items_of_list(listing, listing.root / inside)
            else:
                split += [(folder, name) for folder in listing.below(inside) for name in listing.images(folder)]
    return items


def _resolve(listing: Listing, description: DataYaml, key: str, entry: str) -> str:
    """The path of an entry, as in the listing. Descriptions often carry paths of the machine they were made on."""
    base = str(description.content.get("path") or "")
    # As written; without the base; as below the folder although written as "../train/images" (Roboflow).
    tried = [listing.root / base / entry, listing.root / entry, listing.root / re.sub(r"^(\.\./)+", "", entry)]
    for path in tried:
        inside = listing.relative(path)
        if inside is not None and (inside in listing.folders or path.is_file()):
            return inside
    raise DatasetError(
        f"'{description.path}', {key!r}: nothing at {' or '.join(dict.fromkeys(str(path) for path in tried))}. "
        f"Expected a folder of images or a list of them below '{listing.root}'. Correct the entry."
    )


def _items_of_list(listing: Listing, path: Path) -> list[Item]:
    items = []
    for number, line in enumerate(read_lines(path), start=1):
        name = line.strip()
        if not name:
            continue
        places = [path.parent / name, listing.root / name, listing.root / "images" / PurePosixPath(name).name]
        found = next((item for place in places if (item := _item(listing, place)) is not None), None)
        if found is None:
            raise DatasetError(f"{path}, line {number}: no image {name!r} below '{listing.root}'. Delete the line.")
        items.append(found)
    return items


def _item(listing: Listing, place: Path) -> Item | None:
    inside = listing.relative(place)
    if not inside:
        return None
    folder, _, name = inside.rpartition("/")
    return (folder, name) if name in listing.name_sets.get(folder, ()) else None
