"""Register a folder with a COCO json under a name, after checking what training and evaluation will need."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.data.parsing import is_finite
from d2_ext.errors import DatasetError

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

__all__ = ["check_annotation", "check_coco_file", "check_lists", "read_json", "register_coco_folder"]

LISTS = ("images", "annotations", "categories")
FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}

_logger = logging.getLogger(__name__)


def register_coco_folder(
    name: str,
    folder: str | Path,
    *,
    json_file: str | Path | None = None,
    image_dir: str | Path | None = None,
) -> None:
    """Register a folder with images and one json file in COCO's instances format.

    The json is looked for in ``folder/annotations`` and ``folder``; images in ``folder/images``, ``folder`` and the
    folders inside these. Afterwards ``name`` can stand in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Args:
        name: of the data set.
        folder: holds the images and the json.
        json_file: which json, if there are several; relative to ``folder`` or absolute.
        image_dir: where the images are, if they are not found; relative to ``folder`` or absolute.

    Raises:
        DatasetError: if the name is taken, if the folder, the json or images are missing, if there are several
            jsons, and if the json lacks something that training or evaluation needs.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"A data set '{name}' is already registered. Choose another name.")
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"No folder '{folder}'. Expected a folder with images and a COCO json.")
    json_path = _find_json(folder, json_file)
    content = check_coco_file(json_path)
    image_root = _find_images(folder, image_dir, [image["file_name"] for image in content["images"]])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    metadata = {
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
    }
    register_coco_instances(name, metadata, str(json_path), str(image_root))
    _logger.info(
        "Registered '%s': %d images, %d annotations, %d classes (%s)",
        name,
        *(len(content[key]) for key in LISTS),
        json_path,
    )


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
    _check_annotations(path, content)
    return content


def _find_json(folder: Path, json_file: str | Path | None) -> Path:
    if json_file is not None:
        path = folder / json_file
        if not path.is_file():
            raise DatasetError(f"No file '{path}'. Expected a COCO json. Correct json_file.")
        return path
    looked_in = [folder / "annotations", folder]
    for place in looked_in:
        found = sorted(place.glob("*.json"))
        if len(found) > 1:
            names = ", ".join(p.name for p in found[:8])
            raise DatasetError(
                f"'{place}' holds {len(found)} json files: {names}. Name the one to use with json_file=..."
            )
        if found:
            return found[0]
    raise DatasetError(
        f"No json in {' or '.join(repr(str(p)) for p in looked_in)}. Expected one file in COCO's instances format. "
        "Put it there, or name it with json_file=..."
    )


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
        _check_fields(path, key, content[key])
        doubled = [value for value, count in Counter(row["id"] for row in content[key]).items() if count > 1]
        if doubled:
            raise DatasetError(f"'{path}': id {doubled[0]!r} occurs more than once in '{key}'. Expected unique ids.")


def _check_fields(path: Path, key: str, rows: Sequence[Any]) -> None:
    for index, row in enumerate(rows):
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


def _is_number(value: Any) -> bool:
    return is_finite(value) and abs(value) < MAX_NUMBER


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


MAX_NUMBER = 1e9  # px and their squares; beyond it, and not a number, is nothing that an image has
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


def _check_annotations(path: Path, content: Mapping[str, Any]) -> None:
    images = {row["id"] for row in content["images"]}
    categories = {row["id"] for row in content["categories"]}
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
    return isinstance(shape, list) and all(
        isinstance(polygon, list)
        and (array := np.asarray(polygon, dtype=None if _is_flat(polygon) else object)).dtype.kind in "iuf"
        and bool(np.isfinite(array).all())
        for polygon in shape
    )


def _is_flat(values: list[Any]) -> bool:
    return not any(isinstance(value, list | dict | bool) for value in values)


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


def _find_images(folder: Path, image_dir: str | Path | None, names: Sequence[str]) -> Path:
    """The first place that holds the first image; all others must be there too."""
    if image_dir is not None:
        places = [folder / image_dir]
    else:
        bases = [folder / "images", folder]
        inside = [p for base in bases if base.is_dir() for p in sorted(base.iterdir()) if p.is_dir()]
        places = [*bases, *inside]
    root = next((place for place in places if os.path.isfile(place / names[0])), None)
    if root is None:
        looked = ", ".join(f"'{place}'" for place in places[:8])
        raise DatasetError(
            f"Image '{names[0]}', the first of the json, was not found in {looked}. Expected all images in one of "
            "them. Name their folder with image_dir=..."
        )
    missing = [name for name in names if not os.path.isfile(root / name)]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(names)} images of the json are not in '{root}', first: '{missing[0]}'. "
            "Add them, or take their entries out of the json."
        )
    return root
