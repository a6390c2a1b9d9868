"""Reader of CrowdHuman in its official form: ``Images/`` and one ``annotation_<split>.odgt``, a json object per line.

A line is ``{"ID": ..., "gtboxes": [{"tag", "fbox", "extra", ...}, ...]}``; the image is ``Images/<ID>.jpg``. ``fbox``
is the whole body, XYWH px, and may reach beyond the image. Boxes whose tag is not "person" (crowds, dummies,
reflections) and persons whose ``extra.ignore`` is 1 become ``record["ignore_regions"]``, not annotations.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2_ext.data.parsing import is_finite, read_lines
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError
from d2_ext.images import read_sizes

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

__all__ = ["load_crowdhuman", "register_crowdhuman"]

_logger = logging.getLogger(__name__)


def register_crowdhuman(name: str, odgt_file: str | Path, image_root: str | Path) -> None:
    """Register one split; it is read when the data set is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        odgt_file: the split's annotations.
        image_root: folder with the images.

    Raises:
        DatasetError: if the name is taken.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"A data set '{name}' is already registered. Choose another name.")
    DatasetCatalog.register(name, lambda: load_crowdhuman(odgt_file, image_root))
    MetadataCatalog.get(name).set(thing_classes=["person"], **crowdhuman_metadata(Path(image_root)))


def crowdhuman_metadata(image_root: Path) -> dict[str, Any]:
    """What else ``MetadataCatalog`` knows of a data set in this form."""
    return {
        "thing_dataset_id_to_contiguous_id": {1: 0},
        "image_root": str(image_root),
        "evaluator_type": "crowdhuman",
    }


def load_crowdhuman(
    odgt_file: str | Path, image_root: str | Path, problems: Problems | None = None
) -> list[dict[str, Any]]:
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
    lines = _parse_lines(odgt_file, problems)
    if not lines:
        raise DatasetError(f"'{odgt_file}' holds no line. Expected one json object per image.")
    images = [image_root / f"{entry['ID']}.jpg" for _, entry in lines]
    sizes = read_sizes(images, "Expected Images/<ID>.jpg for every line. Restore it.")
    records = []
    for (number, entry), size in zip(lines, sizes, strict=True):
        where = f"{odgt_file}, line {number}"
        try:
            if isinstance(size, DatasetError):
                raise size
            records.append(_to_record(entry, image_root, size, where, problems))
        except DatasetError as error:
            problems.refuse("unreadable image" if error is size else "malformed line", where, error)
    boxes, regions = (sum(len(record[key]) for record in records) for key in ("annotations", "ignore_regions"))
    _logger.info("%s: %d images, %d persons, %d ignore regions", odgt_file, len(records), boxes, regions)
    problems.log_dropped(_logger, odgt_file)
    return records


def _parse_lines(odgt_file: Path, problems: Problems) -> list[tuple[int, Mapping[str, Any]]]:
    """Line numbers and entries."""
    lines = []
    for number, line in enumerate(read_lines(odgt_file), start=1):
        try:
            if line.strip():
                lines.append((number, _parse_line(line, odgt_file, number)))
        except DatasetError as error:
            problems.refuse("malformed line", f"{odgt_file}, line {number}", error)
    return lines


def _parse_line(line: str, odgt_file: Path, number: int) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # no json, a number of endless digits, endless brackets
        raise DatasetError(f"{odgt_file}, line {number} is not valid json: {error}. Get the file again.") from error
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("ID"), str)
        or not isinstance(entry.get("gtboxes"), list)
    ):
        raise DatasetError(
            f"{odgt_file}, line {number} has no text 'ID' and list 'gtboxes'. Expected CrowdHuman's format. "
            "Correct or delete the line."
        )
    if Path(entry["ID"]).name != entry["ID"] or "\0" in entry["ID"]:
        raise DatasetError(f"{odgt_file}, line {number}: ID {entry['ID']!r} is no name of a file. Correct the line.")
    return entry


def _to_record(
    entry: Mapping[str, Any], image_root: Path, size: tuple[int, int], where: str, problems: Problems
) -> dict[str, Any]:
    """The data set dict of a line."""
    annotations, regions = [], []
    for row in entry["gtboxes"]:
        box = _clip(_full_box(row, where), size)
        extra = row.get("extra", {})
        if not isinstance(extra, dict):
            raise DatasetError(f"{where}: 'extra' is {extra!r}. Expected an object such as {{}}. Correct the line.")
        if box[2] <= 0 or box[3] <= 0:
            problems.dropped("boxes outside their image or without area", where, f"fbox {row['fbox']}")
        elif row.get("tag") == "person" and not extra.get("ignore", 0):
            annotations.append({"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0})
        else:
            regions.append(box)
    return {
        "file_name": str(image_root / f"{entry['ID']}.jpg"),
        "image_id": entry["ID"],
        "width": size[0],
        "height": size[1],
        "annotations": annotations,
        "ignore_regions": regions,
    }


def _full_box(row: Any, where: str) -> list[float]:
    box = row.get("fbox") if isinstance(row, dict) else None
    if not (isinstance(box, list) and len(box) == 4 and all(is_finite(v) for v in box)):
        raise DatasetError(f"{where}: 'fbox' is {box!r}. Expected [x, y, width, height] in px. Correct or delete it.")
    return [float(v) for v in box]


def _clip(box: list[float], size: tuple[int, int]) -> list[float]:
    """The part of a box XYWH that lies in the image (width, height); its sides are 0 or less if there is none."""
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], float(size[0])), min(box[1] + box[3], float(size[1]))
    return [x0, y0, x1 - x0, y1 - y0]
