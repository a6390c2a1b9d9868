"""Make COCO's instances format of a json that nearly is: other key names, fields left out, an "ignore" class.

HIT-UAV's published files are the model: ``annotation`` for ``annotations``, ``filename`` for ``file_name``, no
``iscrowd``, category ids from 0 and a class "DontCare".
"""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Any

from d2_ext.data.formats.base import is_ignore_class

__all__ = ["repair"]

_LIST_NAMES = {
    "images": ("images", "image"),
    "annotations": ("annotations", "annotation"),
    "categories": ("categories", "category"),
}
_FILE_NAMES = ("file_name", "filename", "file")


def repair(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename what has another name and fill in what follows from the rest.

    Args:
        content: of a json file; its entries are changed in place.

    Returns:
        The content with COCO's keys, and what was done, a sentence each; nothing was done to a correct file.
    """
    done: list[str] = []
    content = dict(content)
    for key, names in _LIST_NAMES.items():
        other = next((name for name in names if isinstance(content.get(name), list)), None)
        if other not in (None, key):
            content[key] = content.pop(other)
            done.append(f"'{other}' is read as '{key}'")
    images = [row for row in content.get("images", ()) if isinstance(row, dict)]
    for name in _FILE_NAMES[1:]:
        _fill(images, "file_name", methodcaller("get", name), done, f"from '{name}'")
    annotations = [row for row in content.get("annotations") or () if isinstance(row, dict)]
    _fill(annotations, "iscrowd", lambda row: 0, done, "0")
    _fill(annotations, "area", _box_area, done, "width times height")
    numbers = iter(range(_highest(annotations) + 1, _highest(annotations) + 1 + len(annotations)))
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


def _highest(rows: list[dict[str, Any]]) -> int:
    return max((row["id"] for row in rows if isinstance(row.get("id"), int)), default=0)
