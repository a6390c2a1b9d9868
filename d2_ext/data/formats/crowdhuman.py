"""CrowdHuman's official folders: ``annotation_<split>.odgt`` and ``Images/``."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from d2_ext.data.crowdhuman import crowdhuman_metadata, load_crowdhuman
from d2_ext.data.formats.base import DataFolder, Split, split_of
from d2_ext.data.formats.listing import Listing
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

__all__ = ["look", "open_folder"]

_ID = re.compile(rb'"ID"\s*:\s*"([^"]+)"')


def look(listing: Listing) -> str:
    """Evidence that the folder is in this format; empty if there is none."""
    found = [f"{folder}/{name}" if folder else name for folder, name in listing.files((".odgt",))]
    return f"{', '.join(found[:3])}: CrowdHuman's lines of json" if found else ""


def open_folder(listing: Listing) -> DataFolder:
    """Find the splits and their images.

    Raises:
        DatasetError: if the first image of a split is nowhere.
    """
    splits = []
    for folder, name in listing.files((".odgt",)):
        file = listing.path(folder, name)
        with open(file, "rb") as lines:
            first, count = b"", 0
            for line in lines:
                first = first or line
                count += bool(line.strip())
        images = _image_folder(listing, file, first)
        source = f"{folder}/{name}" if folder else name
        splits.append(
            Split(
                split_of(name) or "all",
                count,
                f"{source}, images in {images or '.'}",
                partial(_read, file, listing.path(images)),
            )
        )
    return DataFolder(
        root=listing.root,
        format="crowdhuman",
        classes=("person",),
        splits=tuple(splits),
        notes=("whole-body boxes (fbox); crowds, reflections and boxes marked 'ignore' are ignored, not background",),
        metadata=crowdhuman_metadata(listing.root),
        has_ignore_regions=True,
    )


def _image_folder(listing: Listing, file: Path, first: bytes) -> str:
    match = _ID.search(first)
    name = f"{match[1].decode('utf-8', 'replace')}.jpg" if match else ""
    found = next((folder for folder, names in listing.name_sets.items() if name in names), None)
    if found is None:
        raise DatasetError(
            f"{file}, line 1: its image {name!r} is not in '{listing.root}' or a folder below. Expected "
            "Images/<ID>.jpg. Unpack the images there."
        )
    return found


def _read(file: Path, image_root: Path, problems: Problems) -> list[dict]:
    return load_crowdhuman(file, image_root, problems)
