"""Reader of VisDrone-DET in its official form: a folder with ``images/`` and ``annotations/``, one txt per image.

A line is ``x,y,w,h,score,category,truncation,occlusion`` in px of the image, and may end in a comma. Category 0 is an
ignored region, 1 to 10 are the classes, 11 is "others". Categories 0 and 11 and lines of score 0 become
``record["ignore_regions"]`` (XYWH) and, in parallel, ``record["ignore_categories"]`` (the number in the file), not
annotations: training must treat them as neither object nor background.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from d2_ext.data.parsing import read_lines
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError
from d2_ext.images import IMAGE_SUFFIXES, read_sizes

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

__all__ = ["VISDRONE_CLASSES", "load_visdrone", "register_visdrone"]

VISDRONE_CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)
OTHERS = 11
NUM_FIELDS = 8
_LINE_FORMAT = "x,y,w,h,score,category,truncation,occlusion"

_logger = logging.getLogger(__name__)


def register_visdrone(name: str, root: str | Path, split_file: str | Path | None = None) -> None:
    """Register a folder in the official VisDrone-DET form; it is read when the data set is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: folder with ``images/`` and ``annotations/``.
        split_file: text file with one image per line (name, with or without suffix); all images if not given.

    Raises:
        DatasetError: if the name is taken.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"A data set '{name}' is already registered. Choose another name.")
    DatasetCatalog.register(name, lambda: load_visdrone(root, split_file))
    MetadataCatalog.get(name).set(thing_classes=list(VISDRONE_CLASSES), **visdrone_metadata(Path(root) / "images"))


def visdrone_metadata(image_root: Path) -> dict[str, Any]:
    """What else ``MetadataCatalog`` knows of a data set in this form."""
    return {
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(VISDRONE_CLASSES))},
        "image_root": str(image_root),
        "evaluator_type": "visdrone",
    }


def load_visdrone(
    root: str | Path, split_file: str | Path | None = None, problems: Problems | None = None
) -> list[dict[str, Any]]:
    """Read a folder in the official VisDrone-DET form.

    Boxes without area, and boxes wholly outside the image, are dropped; their number is logged.

    Args:
        root: folder with ``images/`` and ``annotations/``.
        split_file: see :func:`register_visdrone`.
        problems: takes what is wrong with images and lines; if not given, the first error is raised.

    Returns:
        Detectron2 data set dicts sorted by file name, with ``image_id`` from 1, ``annotations`` (boxes XYWH px,
        ``category_id`` 0..9), ``ignore_regions`` and ``ignore_categories``.

    Raises:
        DatasetError: for a missing folder, image or txt file, an unreadable image, and a malformed line; the
            message names the file, and the line.
    """
    root, problems = Path(root), problems or Problems()
    images = _list_files(root, "images", IMAGE_SUFFIXES)
    texts = _list_files(root, "annotations", (".txt",))
    stems = sorted(images) if split_file is None else _read_split(Path(split_file))
    _check_pairs(root, stems, images, texts, complete=split_file is None)

    sizes = read_sizes([images[stem] for stem in stems], "Restore or remove it and its txt.")
    records = []
    for image_id, (stem, size) in enumerate(zip(stems, sizes), start=1):
        if isinstance(size, DatasetError):
            problems.refuse("unreadable image", str(images[stem]), size)
        else:
            records.append(_read_record(image_id, images[stem], texts[stem], size, problems))
    _log_summary(root, records, problems)
    return records


def _list_files(root: Path, folder: str, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files of ``root/folder`` by stem."""
    path = root / folder
    if not path.is_dir():
        found = sorted(p.name for p in root.iterdir()) if root.is_dir() else None
        state = "does not exist" if found is None else f"contains {', '.join(found[:8]) or 'nothing'}"
        raise DatasetError(
            f"No folder '{path}': '{root}' {state}. Expected VisDrone-DET's official form, a folder with images/ and "
            "annotations/. Unpack the data there (not one folder deeper), or set DETECTRON2_DATASETS to its parent."
        )
    return {p.stem: p for p in path.iterdir() if p.suffix.lower() in suffixes}


def _read_split(split_file: Path) -> list[str]:
    if not split_file.is_file():
        raise DatasetError(f"Split file '{split_file}' does not exist. Expected one image name per line.")
    names = (line.strip() for line in read_lines(split_file))
    stems = [name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name for name in names]
    counts = Counter(stem for stem in stems if stem)
    doubled = [stem for stem, count in counts.items() if count > 1]
    if doubled:
        raise DatasetError(f"Split file '{split_file}' lists '{doubled[0]}' more than once. Expected each name once.")
    return sorted(counts)


def _check_pairs(
    root: Path, stems: list[str], images: dict[str, Path], texts: dict[str, Path], *, complete: bool
) -> None:
    """Every image asked for has its txt file and, if the whole folder is read, the other way round."""
    wanted = set(stems) | (set(texts) if complete else set())
    for what, folder, files in (("image", "images", images), ("txt file", "annotations", texts)):
        missing = sorted(wanted - set(files))
        if missing:
            raise DatasetError(
                f"No {what} for {len(missing)} of {len(wanted)} names in '{root / folder}', first: '{missing[0]}'. "
                "Expected images/<name>.jpg and annotations/<name>.txt in pairs. Restore or remove the odd ones."
            )
    if not wanted:
        raise DatasetError(f"'{root}' holds no images. Expected {', '.join(IMAGE_SUFFIXES)} files in images/.")


def _read_record(image_id: int, image: Path, text: Path, size: tuple[int, int], problems: Problems) -> dict[str, Any]:
    width, height = size
    annotations, regions, categories = [], [], []
    for number, line in enumerate(read_lines(text), start=1):
        if not line.strip():
            continue
        where = f"{text}, line {number}"
        try:
            box, score, category = _parse_line(line, where)
        except DatasetError as error:
            problems.refuse("malformed line", where, error)
            continue
        if not box_in_image(box, size, where, problems):
            continue
        if score == 0 or category in (0, OTHERS):
            regions.append(box)
            categories.append(category)
        else:
            annotations.append({"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category - 1, "iscrowd": 0})
    return {
        "file_name": str(image),
        "image_id": image_id,
        "width": width,
        "height": height,
        "annotations": annotations,
        "ignore_regions": regions,
        "ignore_categories": categories,
    }


def _parse_line(line: str, where: str) -> tuple[list[float], float, int]:
    """Box XYWH, score and category of a line."""
    fields = line.strip().removesuffix(",").split(",")
    if len(fields) != NUM_FIELDS:
        raise _line_error(where, line, f"has {len(fields)} fields instead of {NUM_FIELDS}")
    try:
        x, y, w, h, score, category = map(float, fields[:6])
    except ValueError:
        raise _line_error(where, line, "contains something that is not a number") from None
    if not math.isfinite(x + y + w + h + score + category):
        raise _line_error(where, line, "contains a number that is not finite")
    if w < 0 or h < 0:
        raise _line_error(where, line, "has a negative width or height")
    if category not in range(OTHERS + 1):
        raise _line_error(where, line, f"has category {fields[5]}, which is not one of 0 to {OTHERS}")
    return [x, y, w, h], score, int(category)


def _line_error(where: str, line: str, problem: str) -> DatasetError:
    return DatasetError(
        f"{where}: {line.strip()!r} {problem}. Expected '{_LINE_FORMAT}' in px. Correct or delete the line."
    )


def _log_summary(root: Path, records: list[dict[str, Any]], problems: Problems) -> None:
    boxes = sum(len(r["annotations"]) for r in records)
    regions = sum(len(r["ignore_regions"]) for r in records)
    _logger.info("%s: %d images, %d boxes, %d ignore regions", root, len(records), boxes, regions)
    problems.log_dropped(_logger, root)
