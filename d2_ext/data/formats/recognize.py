"""Look at a folder and say which format of data set it is, with what evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from d2_ext.data.formats.base import DataFolder, Format
from d2_ext.data.formats.coco import Coco
from d2_ext.data.formats.crowdhuman import CrowdHuman
from d2_ext.data.formats.labelme import Labelme
from d2_ext.data.formats.listing import Listing
from d2_ext.data.formats.uavdt import UAVDT
from d2_ext.data.formats.visdrone import VisDrone
from d2_ext.data.formats.voc import VOC
from d2_ext.data.formats.yolo import YOLO
from d2_ext.errors import DatasetError, did_you_mean

__all__ = ["FORMATS", "recognize"]

_ALL: tuple[Format, ...] = (Coco(), YOLO(), VOC(), Labelme(), VisDrone(), UAVDT(), CrowdHuman())
FORMATS: dict[str, Format] = {known.name: known for known in _ALL}


def recognize(folder: str | Path, data_format: str = "") -> DataFolder:
    """Find out what a folder holds; images are not opened for it.

    Args:
        folder: with images and annotations; it may hold the data set's folder as its only entry.
        data_format: one of :data:`FORMATS` where the folder could be several; recognized if empty.

    Returns:
        Format, classes and splits; ``notes`` begin with the evidence.

    Raises:
        DatasetError: for a folder that is in none of the formats or in several, and one whose annotations cannot be
            used; the message says what was found and what was expected.
    """
    if data_format and data_format not in FORMATS:
        raise DatasetError(f"DATASETS.FORMAT: no format {data_format!r}. {did_you_mean(data_format, FORMATS)}")
    listing = Listing(folder)
    evidence = {name: seen for name, known in FORMATS.items() if (seen := known.look(listing))}
    if not data_format and not evidence:
        expected = "; ".join(f"{known.expected} ({name})" for name, known in FORMATS.items())
        raise DatasetError(
            f"'{listing.root}' is in no known format; it contains {listing.summary()}. Expected one of: {expected}."
        )
    if not data_format and len(evidence) > 1:
        seen = "; ".join(f"{name} ({what})" for name, what in evidence.items())
        raise DatasetError(
            f"'{listing.root}' could be read as {' or '.join(evidence)}: {seen}. Say which with DATASETS.FORMAT, for "
            f"example DATASETS.FORMAT {next(iter(evidence))}."
        )
    chosen = data_format or next(iter(evidence))
    data = FORMATS[chosen].open(listing)
    if not data.splits:
        raise DatasetError(f"'{listing.root}' looks like {chosen}, but no image in it has annotations. Add them.")
    return replace(data, notes=(evidence.get(chosen, "format as given"), *data.notes))
