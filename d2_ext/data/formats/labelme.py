"""labelme: a json an image, beside it, with shapes of two or more points in px.

Rectangles and masks become boxes, circles the squares around them, polygons masks and their boxes. Shapes of one label
and one ``group_id`` are one object. Points and lines have no area and are left out. Images without a json are not used:
labelme writes one for each image that was saved.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from d2_ext.data.formats.base import DataFolder, Records, Split, is_ignore_class, log_records, split_of, to_annotation
from d2_ext.data.formats.coco_json import read_json
from d2_ext.data.formats.listing import Listing
from d2_ext.data.parsing import is_finite
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError
from d2_ext.images import IMAGE_SUFFIXES, read_size

__all__ = ["Labelme"]

_HEAD = 65536  # bytes of a json that are looked at; the image may follow in it
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')
_SUFFIXES = tuple(case for suffix in IMAGE_SUFFIXES for case in (suffix, suffix.upper()))
LEAST_POINTS = {"rectangle": 2, "mask": 2, "circle": 2, "polygon": 3, "oriented_rectangle": 4}  # of what has an area

_logger = logging.getLogger(__name__)

Item = tuple[str, str]  # a json and its image, as paths below the folder


class Labelme:
    """The format; see the module."""

    name = "labelme"
    expected = "images with a json of shapes beside each"

    def look(self, listing: Listing) -> str:
        """The first json of a folder that has a list of shapes."""
        for folder, names in listing.folders.items():
            first = next((name for name in names if name.endswith(".json")), None)
            if first is not None and _has_shapes(listing.path(folder, first)):
                return f"{folder}/{first}: json with a list of shapes" if folder else f"{first}: json with shapes"
        return ""

    def open(self, listing: Listing) -> DataFolder:
        """Pair jsons with images, find the splits by folders, and the classes.

        Raises:
            DatasetError: for jsons without images, and without a label.
        """
        items, missing = _pair(listing)
        splits: dict[str, list[Item]] = defaultdict(list)
        labels: set[str] = set()
        for item in items:
            splits[_split(item[0])].append(item)
            try:
                shapes = read_json(listing.root / item[0]).get("shapes")
            except DatasetError:  # reading the images reports it, with all others
                continue
            found = shapes if isinstance(shapes, list) else []
            labels |= {str(shape.get("label") or "") for shape in found if isinstance(shape, dict)} - {""}
        ignored = {name for name in labels if is_ignore_class(name)}
        classes = tuple(sorted(labels - ignored))
        if not classes:
            raise DatasetError(f"The json files in '{listing.root}' have no shape with a label. Expected some.")
        notes = [f"class '{name}' marks regions to be ignored; it is not learned" for name in sorted(ignored)]
        if missing:
            total = len(items) + len(missing)
            notes.append(f"{len(missing)} of {total} images are missing and left out, first: that of {missing[0]}")
        lonely = {f"{f}/{n}" if f else n for f in listing.folders for n in listing.images(f)} - {i for _, i in items}
        notes += [f"{len(lonely)} images have no json and are left out, first: {min(lonely)}"] if lonely else []
        numbers = {name: n for n, name in enumerate(classes)}
        return DataFolder(
            root=listing.root,
            format=self.name,
            classes=classes,
            splits=tuple(
                Split(
                    name,
                    len(found),
                    f"{len(found)} json files",
                    partial(_read, listing, found, [m for m in missing if _split(m) == name], numbers, bool(ignored)),
                )
                for name, found in splits.items()
            ),
            notes=tuple(notes),
            metadata={"evaluator_type": "coco", **({"coco_ignore_regions": True} if ignored else {})},
            has_ignore_regions=bool(ignored),
            has_masks=True,
        )


def _split(path: str) -> str:
    """The part of the data set that the folders of a json speak of."""
    words = [split_of(part) for part in path.split("/")[:-1]]
    return next((word for word in reversed(words) if word), "all")


def _has_shapes(path: Path) -> bool:
    with open(path, "rb") as file:
        return _SHAPES.search(file.read(_HEAD)) is not None


def _pair(listing: Listing) -> tuple[list[Item], list[str]]:
    """Jsons with their images, and jsons whose image is not there."""
    items: list[Item] = []
    missing: list[str] = []
    for folder, name in listing.files((".json",)):
        if not _has_shapes(listing.path(folder, name)):
            continue
        path = f"{folder}/{name}" if folder else name
        # The image of the same name; else the one that the json names, which may lie in another folder.
        own = [f"{name[:-5]}{suffix}" for suffix in _SUFFIXES if f"{name[:-5]}{suffix}" in listing.name_sets[folder]]
        image = next((f"{folder}/{n}" if folder else n for n in own), None)
        if image is None:
            try:
                named = str(read_json(listing.root / path).get("imagePath") or "").replace("\\", "/")
            except DatasetError:
                named = ""
            place = listing.relative(listing.path(folder, named)) if named and "\0" not in named else None
            above = str(PurePosixPath(place).parent) if place else ""
            known = listing.name_sets.get("" if above == "." else above, frozenset())
            image = place if place and PurePosixPath(place).name in known else None
        if image is None:
            missing.append(path)
        else:
            items.append((path, image))
    if not items:
        raise DatasetError(
            f"None of the {len(missing)} json files in '{listing.root}' has its image, first: '{missing[0]}'. Expected "
            "images beside them, under the same names."
        )
    return items, missing


def _read(
    listing: Listing,
    items: list[Item],
    missing: list[str],
    numbers: dict[str, int],
    has_ignored: bool,
    problems: Problems,
) -> Records:
    """Detectron2's data set dicts in the order of the jsons."""
    for path in missing:
        problems.dropped("missing images", str(listing.root / path))
    records = []
    for number, (path, image) in enumerate(items, start=1):
        place, source = listing.root / image, listing.root / path
        try:
            content = read_json(source)
            sides = [content.get("imageWidth"), content.get("imageHeight")]
            width, height = (s if type(s) is int and s > 0 else 0 for s in sides)
            if not (width and height):
                width, height = read_size(place)
        except DatasetError as error:
            problems.refuse("unreadable image" if str(place) in str(error) else "malformed json", str(source), error)
            continue
        record: dict[str, Any] = {"file_name": str(place), "image_id": number, "width": width, "height": height}
        record |= {"annotations": [], **({"ignore_regions": []} if has_ignored else {})}
        objects: dict[tuple[str, Any], list[tuple[list[float], list[float]]]] = defaultdict(list)
        shapes = content.get("shapes")
        if not isinstance(shapes, list):
            problems.error("malformed json", str(source), f"'shapes' is {str(shapes)[:80]!r}. Expected a list.")
            continue
        for index, shape in enumerate(shapes):
            where = f"{source}, shape {index}"
            fields: dict[str, Any] = shape if isinstance(shape, dict) else {}
            kind, label = fields.get("shape_type"), fields.get("label")
            points: Any = fields.get("points")
            if not isinstance(kind, str) or not (isinstance(label, str) and label) or not _are_points(points):
                text = "Expected a label, a shape_type and points [[x, y], ...] in px. Correct or delete it."
                problems.error("malformed shape", where, text)
            elif len(points) < LEAST_POINTS.get(kind, math.inf):
                problems.dropped("shapes without area", where, kind)
            else:
                group = fields.get("group_id")
                key = (label, index) if group is None else (label, ("group", str(group)))
                objects[key].append(_box_and_polygon(kind, points))
        for (label, key), parts in objects.items():
            edges = [min(b[0] for b, _ in parts), min(b[1] for b, _ in parts)]
            edges += [max(b[2] for b, _ in parts), max(b[3] for b, _ in parts)]
            box = [edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]]
            if not box_in_image(box, (width, height), f"{source}, {label} {key}", problems):
                continue
            if label not in numbers:
                record["ignore_regions"].append(box)
                continue
            polygons = [polygon for _, polygon in parts if polygon]
            masks = {"segmentation": polygons} if len(polygons) == len(parts) else {}
            record["annotations"].append({**to_annotation(box, numbers[label]), **masks})
        records.append(record)
    log_records(_logger, listing.root, records, problems)
    return records


def _are_points(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_finite, point)) for point in points
    )


def _box_and_polygon(kind: str, points: list[list[float]]) -> tuple[list[float], list[float]]:
    """The enclosing box XYXY px, and x, y, x, y, ... of a polygon; none for other shapes."""
    if kind == "circle":  # its center and a point of its edge
        (x, y), edge = points[:2]
        radius = math.dist((x, y), edge)
        return [x - radius, y - radius, x + radius, y + radius], []
    xs, ys = zip(*points)
    polygon = [float(v) for point in points for v in point] if kind in ("polygon", "oriented_rectangle") else []
    return [min(xs), min(ys), max(xs), max(ys)], polygon
