"""A json in COCO's instances format: read, checked, and repaired where it is nearly right.

HIT-UAV's published files are the model of the repairs: ``annotation`` for ``annotations``, ``filename`` for
``file_name``, no ``iscrowd``, category ids from 0, a class "DontCare" and, in ``rotate_json``, rotated boxes.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any

from d2_ext.data.formats.base import horizontal_box, is_ignore_class
from d2_ext.data.parsing import is_finite
from d2_ext.errors import DatasetError

import numpy as np

__all__ = [
    "add_ignore_regions",
    "angle_unit",
    "check_annotation",
    "check_coco_file",
    "check_lists",
    "ignore_categories",
    "read_json",
    "repair",
]

LISTS = ("images", "annotations", "categories")
FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
OTHER_NAMES = {"images": "image", "annotations": "annotation", "categories": "category"}  # that are repaired
MAX_NUMBER = 1e9  # px and their squares; no image has more

_logger = logging.getLogger(__name__)


def _is_number(value: Any) -> bool:
    return is_finite(value) and abs(value) < MAX_NUMBER


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


_ID = (lambda v: isinstance(v, int | str) and not isinstance(v, bool), "a whole number")
_SIDE = (lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 < v < MAX_NUMBER, "px, a whole number above 0")
# Field -> (condition, what is expected), whatever list it stands in.
FIELD_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "file_name": (lambda v: isinstance(v, str) and bool(v) and "\0" not in v, "the name of an image"),
    "name": (lambda v: isinstance(v, str) and bool(v), "the name of a class"),
    "width": _SIDE,
    "height": _SIDE,
    "area": (lambda v: _is_number(v) and v >= 0, "square px, a finite number of at least 0"),
    "iscrowd": (lambda v: v in (0, 1), "0 or 1"),
}


def check_coco_file(path: str | Path) -> dict[str, Any]:
    """Read a json in COCO's instances format and check all that training and evaluation will need of it.

    Returns:
        What it holds.

    Raises:
        DatasetError: naming the file, the entry and the value.
    """
    path = Path(path)
    content = read_json(path)
    check_lists(path, content)
    images, categories = ({row["id"] for row in content[key]} for key in ("images", "categories"))
    for row in content["annotations"]:
        where = f"'{path}': annotation {row['id']}"
        _, text = check_annotation(row, images, categories)
        if text:
            raise DatasetError(f"{where} {text}")
        box = row["bbox"]
        if not (box[2] > 0 and box[3] > 0):
            raise DatasetError(f"{where} has bbox {box!r} without area. Expected sides above 0. Correct or delete it.")
    if any(row["id"] == 0 for row in content["annotations"]):
        # pycocotools writes the id of the matched object, and reads 0 as "not matched".
        _logger.warning("'%s': COCO's metric never counts the annotation with id 0 as found. Number from 1.", path)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file.

    Raises:
        DatasetError: if it is not valid json (with line and column), or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read: {error.strerror}. Restore it, or name another file.") from error
    except (ValueError, RecursionError) as error:  # no json, no UTF-8, a number of endless digits, endless brackets
        raise DatasetError(f"'{path}' is not valid json: {error}. Write it again, or name another file.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"'{path}' holds a {type(content).__name__}. Expected an object with {', '.join(LISTS)}.")
    return content


def check_lists(path: Path, content: Mapping[str, Any]) -> None:
    """Check that images, annotations and categories are lists of entries with all fields and unique ids.

    Raises:
        DatasetError: naming the file and the entry.
    """
    for key in LISTS:
        if not isinstance(content.get(key), list) or not content[key]:
            raise DatasetError(
                f"'{path}' has no list '{key}', or an empty one; it has {', '.join(content) or 'nothing'}. Expected "
                f"COCO's instances format: {', '.join(LISTS)}. Rename or add it."
            )
        for index, row in enumerate(content[key]):
            where = f"'{path}': {key}[{index}]"
            if not isinstance(row, dict):
                raise DatasetError(f"{where} is {_short(row)}. Expected an object with {', '.join(FIELDS[key])}.")
            missing = [field for field in FIELDS[key] if field not in row]
            if missing:
                raise DatasetError(
                    f"{where} has no {', '.join(missing)}; it has {', '.join(row)}. Expected "
                    f"{', '.join(FIELDS[key])} in every entry of '{key}'. Rename or add them."
                )
            for field in FIELDS[key]:
                holds, expected = FIELD_RULES.get(field, (None, ""))
                if holds is not None and not holds(row[field]):
                    raise DatasetError(f"{where} has {field} {_short(row[field])}. Expected {expected}. Correct it.")
        doubled = [value for value, count in Counter(row["id"] for row in content[key]).items() if count > 1]
        if doubled:
            raise DatasetError(f"'{path}': id {doubled[0]!r} occurs more than once in '{key}'. Expected unique ids.")


def check_annotation(row: Mapping[str, Any], images: Container[Any], categories: Container[Any]) -> tuple[str, str]:
    """Check an annotation's ids and the form of its box.

    Args:
        row: with all fields.
        images: known ids of images.
        categories: known ids of categories.

    Returns:
        The kind of problem and what is wrong; twice nothing if nothing is.
    """
    if row["image_id"] not in images:
        return "unknown image", f"has image_id {row['image_id']!r}, which is no image's id. Correct or delete it."
    if row["category_id"] not in categories:
        return "unknown class", f"has category_id {row['category_id']!r}, which is no category's id. Correct it."
    box = row["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)):
        expected = "Expected [x, y, width, height], four finite numbers in px. Correct or delete it."
        return "malformed box", f"has bbox {_short(box)}. {expected}"
    shape = row.get("segmentation")
    if shape and not (_are_polygons(shape) or _is_run_length(shape)):
        expected = "Expected polygons [[x, y, x, y, ...], ...], or a mask {size: [height, width], counts: ...}."
        return "malformed shape", f"has segmentation {_short(shape)}. {expected} Correct or delete it."
    return "", ""


def _are_polygons(shape: Any) -> bool:
    def is_polygon(values: Any) -> bool:
        if not isinstance(values, list) or any(isinstance(value, list | dict | bool) for value in values):
            return False
        array = np.asarray(values)
        return array.dtype.kind in "iuf" and bool(np.isfinite(array).all())

    return isinstance(shape, list) and all(map(is_polygon, shape))


def _is_run_length(shape: Any) -> bool:
    """A mask of COCO: runs in one text, or as numbers that fill the image; others would be read past their end."""
    if not isinstance(shape, dict):
        return False
    size, counts = shape.get("size"), shape.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(v) is int and 0 < v < MAX_NUMBER for v in size)):
        return False
    if isinstance(counts, str):
        return bool(counts) and counts.isascii()
    if not isinstance(counts, list) or not all(type(v) is int and v >= 0 for v in counts):
        return False
    return sum(counts) == size[0] * size[1]


def _rotated_boxes(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The annotations with five numbers as their box."""
    rows = content.get("annotations") or content.get(OTHER_NAMES["annotations"])
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    boxes = ((row, row.get("bbox")) for row in rows)
    return [row for row, box in boxes if isinstance(box, list) and len(box) == 5 and all(map(_is_number, box))]


def angle_unit(content: Mapping[str, Any]) -> str:
    """The unit of the angles of a file's rotated boxes: "radians", "degrees", or nothing if it has none.

    Files do not say it. Radians do not exceed a full turn, and degrees do where a single object lies askew.
    """
    angles = [abs(row["bbox"][4]) for row in _rotated_boxes(content)]
    return ("radians" if max(angles) <= 2 * math.pi else "degrees") if angles else ""


def repair(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename what has another name and fill in what follows from the rest.

    Args:
        content: of a json file; its entries are changed in place.

    Returns:
        The content with COCO's keys, and what was done, a sentence each; nothing was done to a correct file.
    """
    done: list[str] = []
    content = dict(content)
    for key, other in OTHER_NAMES.items():
        if not isinstance(content.get(key), list) and isinstance(content.get(other), list):
            content[key] = content.pop(other)
            done.append(f"'{other}' is read as '{key}'")
    if unit := angle_unit(content):
        rotated = _rotated_boxes(content)
        for row in rotated:
            *box, angle = row["bbox"]
            row["bbox"] = horizontal_box([*box, angle if unit == "radians" else math.radians(angle)])
        done.append(
            f"{len(rotated)} rotated boxes (center, width, height, angle in {unit}) are read as the horizontal boxes "
            "around them"
        )
    images = [row for row in content.get("images", ()) if isinstance(row, dict)]
    for name in ("filename", "file"):
        _fill(images, "file_name", methodcaller("get", name), done, f"from '{name}'")
    annotations = [row for row in content.get("annotations") or () if isinstance(row, dict)]
    _fill(annotations, "iscrowd", lambda row: 0, done, "0")
    _fill(annotations, "area", _box_area, done, "width times height")
    # Roboflow lists the name of the project as category 0, above all others, and labelme's script the background.
    categories = [row for row in content.get("categories") or () if isinstance(row, dict)]
    used = [row.get("category_id") for row in annotations]
    for row in categories if len(categories) > 1 else ():
        others = {str(other.get("supercategory")) for other in categories if other is not row}
        is_no_class = others == {str(row.get("name"))} or row.get("name") == "_background_"
        if is_no_class and row.get("id") not in used:
            content["categories"] = [other for other in categories if other is not row]
            done.append(f"category {row.get('name')!r} has no objects and is no class of them; it is left out")
            break
    highest = max((row["id"] for row in annotations if isinstance(row.get("id"), int)), default=0)
    numbers = itertools.count(highest + 1)
    _fill(annotations, "id", lambda row: next(numbers), done, "new numbers")
    return content, done


def ignore_categories(content: dict[str, Any]) -> dict[Any, str]:
    """Ids and names of the categories that mark regions to be ignored."""
    return {row["id"]: row["name"] for row in content["categories"] if is_ignore_class(str(row["name"]))}


def _fill(
    rows: list[dict[str, Any]], key: str, value: Callable[[dict[str, Any]], Any], done: list[str], what: str
) -> None:
    filled = 0
    for row in rows:
        if key not in row and (new := value(row)) is not None:
            row[key] = new
            filled += 1
    if filled:
        done.append(f"{filled} entries without '{key}' got {what}")


def _box_area(row: dict[str, Any]) -> float | None:
    box = row.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box):
        return float(box[2] * box[3])
    return None


def add_ignore_regions(
    content: dict[str, Any], records: Iterable[Mapping[str, Any]], *, class_name: str | None = None
) -> None:
    """Add the ignore regions of records to the content of a json with these images.

    Args:
        content: images, annotations (numbered from 1, one after the other) and categories; changed in place.
        records: data set dicts; ``ignore_regions`` XYWH px.
        class_name: of a class that the regions get; without it each becomes a crowd of every class, which COCO's
            metric ignores.
    """
    annotations = content.setdefault("annotations", [])
    categories = [row["id"] for row in content["categories"]]
    regions = [(record["image_id"], box) for record in records for box in record.get("ignore_regions", [])]
    if regions and class_name is not None:
        categories = [max(categories) + 1]
        content["categories"].append({"id": categories[0], "name": class_name})
    for image_id, box in regions:
        for category in categories:
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "bbox": list(box)}
            annotations.append({**row, "area": float(box[2] * box[3]), "iscrowd": int(class_name is None)})
