"""Look for what is wrong with the records and images of a data set."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2_ext.data.formats.base import DataFolder, Records, Split
from d2_ext.data.problems import Problem, Problems
from d2_ext.errors import DatasetError
from d2_ext.images import is_sideways, open_image

__all__ = ["SplitReport", "check_folder"]

SLACK = 1.0  # px by which a box may reach beyond its image: rounding
SMALL, LARGE = 32.0, 96.0  # sides of the squares between COCO's small, medium and large objects


@dataclass(frozen=True)
class SplitReport:
    """What a split holds and what was found in it.

    Attributes:
        name: of the split.
        images: how many there are.
        empty: images without an object.
        regions: ignore regions and crowds.
        per_class: objects of each class.
        images_per_class: images that show each class.
        sides: square root of each object's area, px.
        longest: longer side of each object, px.
        image_sizes: (width, height) of each image, px.
        crowding: objects of each image.
        found: problems, in the order of files.
    """

    name: str
    images: int
    empty: int
    regions: int
    per_class: tuple[int, ...]
    images_per_class: tuple[int, ...]
    sides: tuple[float, ...]
    longest: tuple[float, ...]
    image_sizes: tuple[tuple[int, int], ...]
    crowding: tuple[int, ...]
    found: tuple[Problem, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of small (below 32x32 px), medium and large (from 96x96 px) objects."""
        small, large = sum(s < SMALL for s in self.sides), sum(s >= LARGE for s in self.sides)
        return small, len(self.sides) - small - large, large


def check_folder(
    data: DataFolder, *, decode: bool = True, progress: Callable[[str, int], None] | None = None
) -> list[SplitReport]:
    """Read every split, collecting errors, and look at each record and image.

    Args:
        data: a recognized folder.
        decode: decode each image wholly, and compare images with each other; else read headers only.
        progress: called with the split's name and the number of images done, now and then.

    Returns:
        A report a split. Errors make training or evaluation fail or wrong; warnings do not, but are seldom meant.
    """
    reports: list[SplitReport] = []
    owners: dict[str, tuple[str, str]] = {}  # digest -> the split and image that had it first
    for split in data.splits:
        problems = Problems(collect=True)
        try:
            records = split.read(problems)
        except DatasetError as error:  # nothing of the split can be read
            problems.error("unreadable split", split.source, str(error))
            records = []
        for record in records:
            _check_boxes(record, problems)
        digests = _check_images(split, records, problems, decode=decode, progress=progress)

        # Images with the same bytes: within a split a warning, in two splits an error.
        copies: dict[str, list[str]] = defaultdict(list)
        for path, digest in digests.items():
            copies[digest].append(path)
        for digest, paths in copies.items():
            if digest in owners:
                other, first = owners[digest]
                text = f"is the same image as {first} of the split '{other}'"
                problems.error("image in two splits", paths[0], text)
            for path in paths[1:]:
                problems.found.append(Problem("warning", "duplicated image", path, f"is the same as {paths[0]}"))
            owners.setdefault(digest, (split.name, paths[0]))

        objects = [[a for a in record["annotations"] if not a.get("iscrowd", 0)] for record in records]
        counts = Counter(a["category_id"] for row in objects for a in row)
        shown = Counter(category for row in objects for category in {a["category_id"] for a in row})
        crowds = sum(len(record["annotations"]) - len(row) for record, row in zip(records, objects))
        reports.append(
            SplitReport(
                name=split.name,
                images=len(records),
                empty=sum(not row for row in objects),
                regions=crowds + sum(len(record.get("ignore_regions", ())) for record in records),
                per_class=tuple(counts[i] for i in range(len(data.classes))),
                images_per_class=tuple(shown[i] for i in range(len(data.classes))),
                longest=tuple(max(a["bbox"][2:]) for row in objects for a in row),
                image_sizes=tuple((record["width"], record["height"]) for record in records),
                sides=tuple((a["bbox"][2] * a["bbox"][3]) ** 0.5 for row in objects for a in row),
                crowding=tuple(len(row) for row in objects),
                found=tuple(problems.found),
            )
        )
    return reports


def _check_boxes(record: dict[str, Any], problems: Problems) -> None:
    """Boxes that reach outside, are there twice, or cover less than a pixel."""
    width, height = record["width"], record["height"]
    seen: set[tuple] = set()
    for annotation in record["annotations"]:
        x, y, w, h = annotation["bbox"]
        where, text = record["file_name"], f"box {[round(v, 2) for v in annotation['bbox']]}"
        if x < -SLACK or y < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
            problems.found.append(
                Problem("warning", "box partly outside", where, f"{text} in an image of {width}x{height}")
            )
        if w < 1 or h < 1:
            problems.found.append(Problem("warning", "box below 1 px", where, text))
        key = (annotation["category_id"], *(round(v, 2) for v in annotation["bbox"]))
        if key in seen:
            problems.found.append(Problem("warning", "duplicated box", where, text))
        seen.add(key)


def _check_images(
    split: Split,
    records: Records,
    problems: Problems,
    *,
    decode: bool,
    progress: Callable[[str, int], None] | None,
) -> dict[str, str]:
    """Image -> digest of its bytes (only if decoded); problems are reported in the order of the records."""

    def look_at(record: dict[str, Any]) -> tuple[str, list[Problem]]:
        path, said = record["file_name"], (record["width"], record["height"])
        try:
            content = Path(path).read_bytes() if decode and os.path.isfile(path) else None
            with open_image(path, content or None) as image:
                if decode:
                    image.load()
                stored, sideways = image.size, is_sideways(image)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
            return "", [Problem("error", "unreadable image", path, str(error))]
        digest = hashlib.sha256(content).hexdigest() if content else ""
        upright = stored[::-1] if sideways else stored
        if said != upright:
            hint = " before its EXIF orientation turns it, as training will" if sideways and said == stored else ""
            text = f"is {upright[0]}x{upright[1]}, the annotations say {said[0]}x{said[1]}{hint}"
            return digest, [Problem("error", "size mismatch", path, text)]
        if sideways:
            text = "boxes are taken to be those of the turned image; look at one"
            return digest, [Problem("warning", "EXIF rotation", path, text)]
        return digest, []

    digests = {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        for done, (record, (digest, found)) in enumerate(zip(records, pool.map(look_at, records)), start=1):
            problems.found += found
            if digest:
                digests[record["file_name"]] = digest
            if progress is not None and (done % 100 == 0 or done == len(records)):
                progress(split.name, done)
    return digests
