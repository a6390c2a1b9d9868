"""CrowdHuman in its official form: ``Images/`` and one ``annotation_<split>.odgt``, a json object per line.

A line is ``{"ID": ..., "gtboxes": [{"tag", "fbox", "extra", ...}, ...]}``; the image is ``Images/<ID>.jpg``. ``fbox``
is the whole body, XYWH px, and may reach beyond the image. Boxes whose tag is not "person" (crowds, dummies,
reflections) and persons whose ``extra.ignore`` is 1 become ``record["ignore_regions"]``, not annotations.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from d2_ext.data.formats.base import DataFolder, Records, Split, log_records, register_records, split_of, to_annotation
from d2_ext.data.formats.listing import Listing
from d2_ext.data.parsing import is_finite, read_lines
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError
from d2_ext.images import read_sizes

__all__ = ["CrowdHuman", "load_crowdhuman", "register_crowdhuman"]

_ID = re.compile(rb'"ID"\s*:\s*"([^"]+)"')

_logger = logging.getLogger(__name__)


class CrowdHuman:
    """The format; see the module."""

    name = "crowdhuman"
    expected = "annotation_*.odgt"

    def look(self, listing: Listing) -> str:
        """Files of the official ending."""
        found = [f"{folder}/{name}" if folder else name for folder, name in listing.files((".odgt",))]
        return f"{', '.join(found[:3])}: CrowdHuman's lines of json" if found else ""

    def open(self, listing: Listing) -> DataFolder:
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
            match = _ID.search(first)
            image = f"{match[1].decode('utf-8', 'replace')}.jpg" if match else ""
            images = next((place for place, names in listing.name_sets.items() if image in names), None)
            if images is None:
                raise DatasetError(
                    f"{file}, line 1: its image {image!r} is not in '{listing.root}' or a folder below. Expected "
                    "Images/<ID>.jpg. Unpack the images there."
                )
            source = f"{f'{folder}/{name}' if folder else name}, images in {images or '.'}"
            splits.append(
                Split(split_of(name) or "all", count, source, partial(load_crowdhuman, file, listing.path(images)))
            )
        return DataFolder(
            root=listing.root,
            format=self.name,
            classes=("person",),
            splits=tuple(splits),
            notes=(
                "whole-body boxes (fbox); crowds, reflections and boxes marked 'ignore' are ignored, not background",
            ),
            metadata=_metadata(listing.root),
            has_ignore_regions=True,
        )


def register_crowdhuman(name: str, odgt_file: str | Path, image_root: str | Path) -> None:
    """Register one split; it is read when the data set is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        odgt_file: the split's annotations.
        image_root: folder with the images.

    Raises:
        DatasetError: if the name is taken.
    """
    metadata = _metadata(Path(image_root))
    register_records(name, lambda: load_crowdhuman(odgt_file, image_root), ("person",), metadata)


def load_crowdhuman(odgt_file: str | Path, image_root: str | Path, problems: Problems | None = None) -> Records:
    """Read one split.

    Whole-body boxes are clipped to the image; those that lie outside or have no area are dropped and counted.

    Args:
        odgt_file: the split's annotations.
        image_root: folder with the images.
        problems: takes what is wrong with lines and images; if not given, the first error is raised.

    Returns:
        Detectron2 data set dicts in the file's order, with ``image_id`` (the ID), ``annotations`` (boxes XYWH px,
        category 0) and ``ignore_regions`` (XYWH px).

    Raises:
        DatasetError: a missing file or image, or a line that cannot be used; the message names file and line.
    """
    odgt_file, image_root, problems = Path(odgt_file), Path(image_root), problems or Problems()
    if not odgt_file.is_file():
        raise DatasetError(
            f"No file '{odgt_file}'. Expected CrowdHuman's official annotations. Put them there, or set "
            "DETECTRON2_DATASETS to the folder that holds CrowdHuman/."
        )
    entries: list[tuple[str, Mapping[str, Any]]] = []  # where it stands, and what it says
    for number, line in enumerate(read_lines(odgt_file), start=1):
        where = f"{odgt_file}, line {number}"
        try:
            if line.strip():
                entries.append((where, _parse_line(line, where)))
        except DatasetError as error:
            problems.refuse("malformed line", where, error)
    if not entries:
        raise DatasetError(f"'{odgt_file}' holds no line. Expected one json object per image.")

    images = [image_root / f"{entry['ID']}.jpg" for _, entry in entries]
    sizes = read_sizes(images, "Expected Images/<ID>.jpg for every line. Restore it.")
    records = []
    for (where, entry), image, size in zip(entries, images, sizes, strict=True):
        if isinstance(size, DatasetError):
            problems.refuse("unreadable image", where, size)
            continue
        record = {"file_name": str(image), "image_id": entry["ID"], "width": size[0], "height": size[1]}
        try:
            records.append({**record, **_boxes(entry["gtboxes"], size, where, problems)})
        except DatasetError as error:
            problems.refuse("malformed line", where, error)
    log_records(_logger, odgt_file, records, problems)
    return records


def _metadata(image_root: Path) -> dict[str, Any]:
    return {
        "thing_dataset_id_to_contiguous_id": {1: 0},
        "image_root": str(image_root),
        "evaluator_type": "crowdhuman",
    }


def _parse_line(line: str, where: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # no json, a number of endless digits, endless brackets
        raise DatasetError(f"{where} is not valid json: {error}. Get the file again.") from error
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("ID"), str)
        or not isinstance(entry.get("gtboxes"), list)
    ):
        raise DatasetError(
            f"{where} has no text 'ID' and list 'gtboxes'. Expected CrowdHuman's format. Correct or delete the line."
        )
    if Path(entry["ID"]).name != entry["ID"] or "\0" in entry["ID"]:
        raise DatasetError(f"{where}: ID {entry['ID']!r} is no name of a file. Correct the line.")
    return entry


def _boxes(rows: list[Any], size: tuple[int, int], where: str, problems: Problems) -> dict[str, list[Any]]:
    """Annotations and ignore regions of a line."""
    annotations, regions = [], []
    for row in rows:
        box = row.get("fbox") if isinstance(row, dict) else None
        if not (isinstance(box, list) and len(box) == 4 and all(is_finite(v) for v in box)):
            raise DatasetError(
                f"{where}: 'fbox' is {box!r}. Expected [x, y, width, height] in px. Correct or delete it."
            )
        extra = row.get("extra", {})
        if not isinstance(extra, dict):
            raise DatasetError(f"{where}: 'extra' is {extra!r}. Expected an object such as {{}}. Correct the line.")
        x0, y0 = max(float(box[0]), 0.0), max(float(box[1]), 0.0)
        x1, y1 = min(float(box[0]) + box[2], float(size[0])), min(float(box[1]) + box[3], float(size[1]))
        if x1 <= x0 or y1 <= y0:
            problems.dropped("boxes outside their image or without area", where, f"fbox {box}")
        elif row.get("tag") == "person" and not extra.get("ignore", 0):
            annotations.append(to_annotation([x0, y0, x1 - x0, y1 - y0], 0))
        else:
            regions.append([x0, y0, x1 - x0, y1 - y0])
    return {"annotations": annotations, "ignore_regions": regions}
