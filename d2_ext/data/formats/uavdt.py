"""UAVDT's official folders: ``UAV-benchmark-M`` with sequences of images, and ``GT`` with two txts a sequence."""

from __future__ import annotations

from functools import partial

from d2_ext.data.formats.base import DataFolder, Split
from d2_ext.data.formats.listing import Listing
from d2_ext.data.problems import Problems
from d2_ext.data.uavdt import (
    IMAGE_FOLDER,
    TRUTH_FOLDERS,
    UAVDT_CLASSES,
    UAVDT_SEQUENCES,
    load_uavdt,
    uavdt_metadata,
)
from d2_ext.errors import DatasetError

__all__ = ["look", "open_folder"]

_ENDING = "_gt_whole.txt"


def look(listing: Listing) -> str:
    """Evidence that the folder is in this format; empty if there is none."""
    truth = _truth(listing)
    if truth is None or IMAGE_FOLDER not in listing.folders:
        return ""
    return f"{IMAGE_FOLDER}/ and {truth}/*{_ENDING}"


def _truth(listing: Listing) -> str | None:
    return next((f for f in TRUTH_FOLDERS if any(name.endswith(_ENDING) for name in listing.folders.get(f, ()))), None)


def open_folder(listing: Listing) -> DataFolder:
    """Take the sequences that have images and truth, split as the authors did.

    Raises:
        DatasetError: if no sequence has both.
    """
    truth = _truth(listing) or ""
    annotated = {name.removesuffix(_ENDING) for name in listing.folders[truth] if name.endswith(_ENDING)}
    pictured = {f.split("/")[1] for f in listing.folders if f.startswith(f"{IMAGE_FOLDER}/") and listing.images(f)}
    both = annotated & pictured
    if not both:
        raise DatasetError(
            f"'{listing.root}': no sequence has both images in {IMAGE_FOLDER}/ and a txt in {truth}/. Unpack both."
        )
    notes = [f"sequences without images: {_some(annotated - both)}"] if annotated - both else []
    notes += [f"sequences without {_ENDING}: {_some(pictured - both)}"] if pictured - both else []
    official = {name: split for split, names in UAVDT_SEQUENCES.items() for name in names}
    sequences: dict[str, list[str]] = {}
    for name in sorted(both):
        sequences.setdefault(official.get(name, "train"), []).append(name)
    unknown = both - official.keys()
    notes += [f"not in the official split, so in train: {_some(unknown)}"] if unknown else []
    return DataFolder(
        root=listing.root,
        format="uavdt",
        classes=UAVDT_CLASSES,
        splits=tuple(
            Split(
                split,
                sum(_frames(listing, truth, name) for name in names),
                f"{len(names)} sequences",
                partial(_read, listing, tuple(names)),
            )
            for split, names in sequences.items()
        ),
        notes=(*notes, "images without any object are left out, as in the published split"),
        metadata=uavdt_metadata(listing.root),
        has_ignore_regions=True,
    )


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _frames(listing: Listing, truth: str, sequence: str) -> int:
    """Frames with an object: the records that the sequence will give."""
    lines = listing.path(truth, f"{sequence}{_ENDING}").read_text(errors="replace").splitlines()
    return len({line.split(",", 1)[0].strip() for line in lines if line.strip()})


def _read(listing: Listing, sequences: tuple[str, ...], problems: Problems) -> list[dict]:
    return load_uavdt(listing.root, sequences, problems)
