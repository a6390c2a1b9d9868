"""VisDrone-DET in its official form: a folder with ``images/`` and ``annotations/``, one txt per image.

A line is ``x,y,w,h,score,category,truncation,occlusion`` in px of the image, and may end in a comma. Category 0 is an
ignored region, 1 to 10 are the classes, 11 is "others". Categories 0 and 11 and lines of score 0 become
``record["ignore_regions"]`` (XYWH) and, in parallel, ``record["ignore_categories"]`` (the number in the file), not
annotations: training must treat them as neither object nor background.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from d2_ext.data.formats.base import DataFolder, Records, Split, log_records, register_records, split_of, to_annotation
from d2_ext.data.formats.listing import Listing
from d2_ext.data.parsing import read_lines
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError
from d2_ext.images import IMAGE_SUFFIXES, read_sizes

__all__ = ["VISDRONE_CLASSES", "VisDrone", "load_visdrone", "register_visdrone"]

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
LINE_FORMAT = "x,y,w,h,score,category,truncation,occlusion"
_LINE = re.compile(r"\s*-?[\d.]+(,-?[\d.]+){7},?\s*$")
_SPLIT_FILE = re.compile(r"split_(train|val|test)\.txt$")

_logger = logging.getLogger(__name__)


class VisDrone:
    """The format; see the module."""

    name = "visdrone"
    expected = "annotations/*.txt beside images/"

    def look(self, listing: Listing) -> str:
        """A txt in ``annotations/`` whose first line is of the form."""
        for base in _bases(listing):
            folder = f"{base}/annotations" if base else "annotations"
            for name in listing.folders[folder][:20]:
                text = listing.path(folder, name).read_text(errors="replace") if name.endswith(".txt") else ""
                if any(_LINE.match(line) for line in text.splitlines()[:1]):
                    return f"{folder}/{name}: lines of 8 numbers '{LINE_FORMAT}'"
        return ""

    def open(self, listing: Listing) -> DataFolder:
        """Find the splits: folders of their own (VisDrone2019-DET-train, ...), or lists ``split_<name>.txt``.

        Raises:
            DatasetError: if two folders are the same split.
        """
        splits: dict[str, Split] = {}
        notes = []

        def add(name: str, count: int, source: str, root: Path, split_file: Path | None) -> None:
            if name in splits:
                raise DatasetError(
                    f"{splits[name].source} and {source} both are the split '{name}'. Give one folder to --data."
                )
            splits[name] = Split(name, count, source, partial(load_visdrone, root, split_file))

        for base in _bases(listing):
            root, shown = listing.path(base), base or "."
            texts = [n for n in listing.folders[f"{base}/annotations" if base else "annotations"] if n.endswith(".txt")]
            lists = {m[1]: listing.path(base, name) for name in listing.folders[base] if (m := _SPLIT_FILE.match(name))}
            listed = 0
            for name, file in lists.items():
                count = sum(bool(line.strip()) for line in file.read_text(errors="replace").splitlines())
                add(name, count, f"{shown}, {file.name}", root, file)
                listed += count
            if lists and len(texts) > listed:
                notes.append(
                    f"{shown}: {len(texts) - listed} annotated images are in none of {', '.join(sorted(lists))}"
                )
            elif not lists and texts:
                add(split_of(base) or "all", len(texts), shown, root, None)
            elif not lists:
                notes.append(f"{shown}: has no annotations and is not used")
        notes.append("categories 0 (ignored region), 11 (others) and boxes of score 0 are ignored, not background")
        return DataFolder(
            root=listing.root,
            format=self.name,
            classes=VISDRONE_CLASSES,
            splits=tuple(splits.values()),
            notes=tuple(notes),
            metadata=_metadata(listing.root),
            has_ignore_regions=True,
        )


def register_visdrone(name: str, root: str | Path, split_file: str | Path | None = None) -> None:
    """Register a folder in the official VisDrone-DET form; it is read when the data set is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: folder with ``images/`` and ``annotations/``.
        split_file: text file with one image per line (name, with or without suffix); all images if not given.

    Raises:
        DatasetError: if the name is taken.
    """
    metadata = _metadata(Path(root) / "images")
    register_records(name, lambda: load_visdrone(root, split_file), VISDRONE_CLASSES, metadata)


def load_visdrone(root: str | Path, split_file: str | Path | None = None, problems: Problems | None = None) -> Records:
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
    images = _files_by_stem(root, "images", IMAGE_SUFFIXES)
    texts = _files_by_stem(root, "annotations", (".txt",))
    stems = sorted(images) if split_file is None else _read_split(Path(split_file))

    # Every image asked for has its txt file and, if the whole folder is read, the other way round.
    wanted = set(stems) | (set(texts) if split_file is None else set())
    for what, folder, files in (("image", "images", images), ("txt file", "annotations", texts)):
        missing = sorted(wanted - set(files))
        if missing:
            raise DatasetError(
                f"No {what} for {len(missing)} of {len(wanted)} names in '{root / folder}', first: '{missing[0]}'. "
                "Expected images/<name>.jpg and annotations/<name>.txt in pairs. Restore or remove the odd ones."
            )
    if not wanted:
        raise DatasetError(f"'{root}' holds no images. Expected {', '.join(IMAGE_SUFFIXES)} files in images/.")

    records = []
    sizes = read_sizes([images[stem] for stem in stems], "Restore or remove it and its txt.")
    for image_id, (stem, size) in enumerate(zip(stems, sizes), start=1):
        if isinstance(size, DatasetError):
            problems.refuse("unreadable image", str(images[stem]), size)
            continue
        record: dict[str, Any] = {
            "file_name": str(images[stem]),
            "image_id": image_id,
            "width": size[0],
            "height": size[1],
            "annotations": [],
            "ignore_regions": [],
            "ignore_categories": [],
        }
        for number, line in enumerate(read_lines(texts[stem]), start=1):
            if not line.strip():
                continue
            where = f"{texts[stem]}, line {number}"
            try:
                box, score, category = _parse_line(line, where)
            except DatasetError as error:
                problems.refuse("malformed line", where, error)
                continue
            if not box_in_image(box, size, where, problems):
                continue
            if score == 0 or category in (0, OTHERS):
                record["ignore_regions"].append(box)
                record["ignore_categories"].append(category)
            else:
                record["annotations"].append(to_annotation(box, category - 1))
        records.append(record)
    log_records(_logger, root, records, problems)
    return records


def _bases(listing: Listing) -> list[str]:
    """Folders that hold images/ and annotations/."""
    above = [listing.parent(folder) for folder in listing.folders if folder.split("/")[-1] == "annotations"]
    return [base for base in above if (f"{base}/images" if base else "images") in listing.folders]


def _metadata(image_root: Path) -> dict[str, Any]:
    return {
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(VISDRONE_CLASSES))},
        "image_root": str(image_root),
        "evaluator_type": "visdrone",
    }


def _files_by_stem(root: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
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
    """Sorted stems of the images that a split file lists."""
    if not split_file.is_file():
        raise DatasetError(f"Split file '{split_file}' does not exist. Expected one image name per line.")
    names = (line.strip() for line in read_lines(split_file))
    stems = [name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name for name in names]
    counts = Counter(stem for stem in stems if stem)
    doubled = [stem for stem, count in counts.items() if count > 1]
    if doubled:
        raise DatasetError(f"Split file '{split_file}' lists '{doubled[0]}' more than once. Expected each name once.")
    return sorted(counts)


def _parse_line(line: str, where: str) -> tuple[list[float], float, int]:
    """Box XYWH, score and category of a line."""
    fields, wanted = line.strip().removesuffix(",").split(","), LINE_FORMAT.count(",") + 1
    try:
        x, y, w, h, score, category = map(float, fields[:6]) if len(fields) == wanted else (0.0,) * 6
    except ValueError:
        problem = "contains something that is not a number"
    else:
        if len(fields) != wanted:
            problem = f"has {len(fields)} fields instead of {wanted}"
        elif not math.isfinite(x + y + w + h + score + category):
            problem = "contains a number that is not finite"
        elif w < 0 or h < 0:
            problem = "has a negative width or height"
        elif category not in range(OTHERS + 1):
            problem = f"has category {fields[5]}, which is not one of 0 to {OTHERS}"
        else:
            return [x, y, w, h], score, int(category)
    raise DatasetError(
        f"{where}: {line.strip()!r} {problem}. Expected '{LINE_FORMAT}' in px. Correct or delete the line."
    )
