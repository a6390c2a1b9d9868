"""VisDrone-DET's official folders: ``images/`` and ``annotations/`` with a txt an image."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from d2_ext.data.formats.base import DataFolder, Split, split_of
from d2_ext.data.formats.listing import Listing
from d2_ext.data.problems import Problems
from d2_ext.data.visdrone import VISDRONE_CLASSES, load_visdrone, visdrone_metadata
from d2_ext.errors import DatasetError

__all__ = ["look", "open_folder"]

_LINE = re.compile(r"\s*-?[\d.]+(,-?[\d.]+){7},?\s*$")
_SPLIT_FILE = re.compile(r"split_(train|val|test)\.txt$")


def look(listing: Listing) -> str:
    """Evidence that the folder is in this format; empty if there is none."""
    for base in _bases(listing):
        folder = f"{base}/annotations" if base else "annotations"
        for name in listing.folders[folder][:20]:
            lines = listing.path(folder, name).read_text(errors="replace").splitlines() if name.endswith(".txt") else ()
            if any(_LINE.match(line) for line in lines[:1]):
                return f"{folder}/{name}: lines of 8 numbers 'x,y,w,h,score,category,truncation,occlusion'"
    return ""


def _bases(listing: Listing) -> list[str]:
    """Folders that hold images/ and annotations/."""
    above = [listing.parent(folder) for folder in listing.folders if folder.split("/")[-1] == "annotations"]
    return [base for base in above if (f"{base}/images" if base else "images") in listing.folders]


def open_folder(listing: Listing) -> DataFolder:
    """Find the splits: folders of their own (VisDrone2019-DET-train, ...), or lists ``split_<name>.txt``.

    Raises:
        DatasetError: if two folders are the same split.
    """
    splits: dict[str, Split] = {}
    notes = []
    for base in _bases(listing):
        folder = f"{base}/annotations" if base else "annotations"
        root, texts = listing.path(base), [name for name in listing.folders[folder] if name.endswith(".txt")]
        lists = {m[1]: listing.path(base, name) for name in listing.folders[base] if (m := _SPLIT_FILE.match(name))}
        for name, file in lists.items():
            _add(splits, name, _count(file), f"{base or '.'}, {file.name}", partial(_read, root, file))
        unlisted = len(texts) - sum(_count(file) for file in lists.values())
        if lists and unlisted > 0:
            notes.append(f"{base or '.'}: {unlisted} annotated images are in none of {', '.join(sorted(lists))}")
        if not lists and texts:
            _add(splits, split_of(base) or "all", len(texts), base or ".", partial(_read, root, None))
        elif not lists:
            notes.append(f"{base or '.'}: has no annotations and is not used")
    return DataFolder(
        root=listing.root,
        format="visdrone",
        classes=VISDRONE_CLASSES,
        splits=tuple(splits.values()),
        notes=(*notes, "categories 0 (ignored region), 11 (others) and boxes of score 0 are ignored, not background"),
        metadata=visdrone_metadata(listing.root),
        has_ignore_regions=True,
    )


def _add(splits: dict[str, Split], name: str, count: int, source: str, read: partial) -> None:
    if name in splits:
        raise DatasetError(
            f"{splits[name].source} and {source} both are the split '{name}'. Give one folder to --data."
        )
    splits[name] = Split(name, count, source, read)


def _count(file: Path) -> int:
    return sum(bool(line.strip()) for line in file.read_text(errors="replace").splitlines())


def _read(root: Path, split_file: Path | None, problems: Problems) -> list[dict]:
    return load_visdrone(root, split_file, problems)
