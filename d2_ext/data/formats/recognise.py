"""Look at a folder and say which format of data set it is, with what evidence."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from d2_ext.data.formats import coco, crowdhuman, uavdt, visdrone, voc, yolo
from d2_ext.data.formats.base import DataFolder
from d2_ext.data.formats.listing import Listing
from d2_ext.errors import DatasetError, did_you_mean

__all__ = ["FORMATS", "recognise"]

# Name -> its module, with look(listing) -> evidence and open_folder(listing) -> DataFolder.
FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "yolo": yolo,
    "voc": voc,
    "visdrone": visdrone,
    "uavdt": uavdt,
    "crowdhuman": crowdhuman,
}
_EXPECTED = (
    "a json with images, annotations and categories (coco); labels/*.txt beside images/ (yolo); Annotations/*.xml "
    "(voc); annotations/*.txt beside images/ (visdrone); UAV-benchmark-M/ and GT/ (uavdt); annotation_*.odgt "
    "(crowdhuman)"
)


def recognise(folder: str | Path, data_format: str = "") -> DataFolder:
    """Find out what a folder holds; images are not opened for it.

    Args:
        folder: with images and annotations; it may hold the data set's folder as its only entry.
        data_format: one of :data:`FORMATS` where the folder could be several; recognised if empty.

    Returns:
        Format, classes and splits; ``notes`` begin with the evidence.

    Raises:
        DatasetError: for a folder that is in none of the formats or in several, and one whose annotations cannot be
            used; the message says what was found and what was expected.
    """
    if data_format and data_format not in FORMATS:
        raise DatasetError(f"DATASETS.FORMAT: no format {data_format!r}. {did_you_mean(data_format, FORMATS)}")
    listing = Listing(folder)
    evidence = {name: seen for name, module in FORMATS.items() if (seen := module.look(listing))}
    chosen = data_format or _only(evidence, listing)
    data = FORMATS[chosen].open_folder(listing)
    if not data.splits:
        raise DatasetError(f"'{listing.root}' looks like {chosen}, but no image in it has annotations. Add them.")
    return DataFolder(**{**vars(data), "notes": (evidence.get(chosen, "format as given"), *data.notes)})


def _only(evidence: dict[str, str], listing: Listing) -> str:
    if len(evidence) == 1:
        return next(iter(evidence))
    if not evidence:
        raise DatasetError(
            f"'{listing.root}' is in no known format; it contains {listing.summary()}. Expected one of: {_EXPECTED}."
        )
    seen = "; ".join(f"{name} ({what})" for name, what in evidence.items())
    raise DatasetError(
        f"'{listing.root}' could be read as {' or '.join(evidence)}: {seen}. Say which with DATASETS.FORMAT, for "
        f"example DATASETS.FORMAT {next(iter(evidence))}."
    )
