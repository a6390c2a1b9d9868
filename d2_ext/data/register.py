"""Register a folder with a COCO json under a name, after checking what training and evaluation will need."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

__all__ = ["check_annotation", "check_lists", "read_json", "register_coco_folder"]

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
    """Register a folder with pictures and one json file in COCO's instances format.

    The json is looked for in ``folder/annotations`` and ``folder``; pictures in ``folder/images``, ``folder`` and the
    folders inside these. Afterwards ``name`` can stand in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Args:
        name: of the data set.
        folder: holds the pictures and the json.
        json_file: which json, if there are several; relative to ``folder`` or absolute.
        image_dir: where the pictures are, if they are not found; relative to ``folder`` or absolute.

    Raises:
        DatasetError: if the name is taken, if the folder, the json or pictures are missing, if there are several
            jsons, and if the json lacks something that training or evaluation needs.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"A data set '{name}' is already registered. Choose another name.")
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"No folder '{folder}'. Expected a folder with pictures and a COCO json.")
    json_path = _find_json(folder, json_file)
    content = read_json(json_path)
    check_lists(json_path, content)
    _check_annotations(json_path, content)
    image_root = _find_images(folder, image_dir, [image["file_name"] for image in content["images"]])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    metadata = {
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
    }
    register_coco_instances(name, metadata, str(json_path), str(image_root))
    _logger.info(
        "Registered '%s': %d pictures, %d annotations, %d classes (%s)",
        name,
        *(len(content[key]) for key in LISTS),
        json_path,
    )


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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


def _check_fields(path: Path, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DatasetError(
                f"'{path}': {key}[{index}] is {row!r}. Expected an object with {', '.join(FIELDS[key])}."
            )
        missing = [field for field in FIELDS[key] if field not in row]
        if missing:
            raise DatasetError(
                f"'{path}': {key}[{index}] has no {', '.join(missing)}; it has {', '.join(row)}. Expected "
                f"{', '.join(FIELDS[key])} in every entry of '{key}'. Rename or add them."
            )


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
        return "unknown picture", f"has image_id {row['image_id']!r}, which is no image's id. Correct or delete it."
    if row["category_id"] not in categories:
        return "unknown class", f"has category_id {row['category_id']!r}, which is no category's id. Correct it."
    box = row["bbox"]
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not numbers or not math.isfinite(sum(box)):
        return "malformed box", f"has bbox {box!r}. Expected [x, y, width, height] in px. Correct or delete it."
    return "", ""


def _find_images(folder: Path, image_dir: str | Path | None, names: Sequence[str]) -> Path:
    """The first place that holds the first picture; all others must be there too."""
    if image_dir is not None:
        places = [folder / image_dir]
    else:
        bases = [folder / "images", folder]
        inside = [p for base in bases if base.is_dir() for p in sorted(base.iterdir()) if p.is_dir()]
        places = [*bases, *inside]
    root = next((place for place in places if (place / names[0]).is_file()), None)
    if root is None:
        looked = ", ".join(f"'{place}'" for place in places[:8])
        raise DatasetError(
            f"Picture '{names[0]}', the first of the json, was not found in {looked}. Expected all pictures in one of "
            "them. Name their folder with image_dir=..."
        )
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(names)} pictures of the json are not in '{root}', first: '{missing[0]}'. "
            "Add them, or take their entries out of the json."
        )
    return root
