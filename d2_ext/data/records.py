"""Checks of a loaded data set, before the first batch is made of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from d2_ext.data.formats.coco_json import check_coco_file
from d2_ext.data.parsing import is_finite
from d2_ext.errors import DatasetError
from d2_ext.images import check_image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

__all__ = ["check_records", "load_records", "naming_unreadable"]

MAX_IMAGES_OPENED = 2000  # of a data set, spread evenly; the others are checked when they are read

_logger = logging.getLogger(__name__)


def load_records(name: str) -> list[dict[str, Any]]:
    """Load a registered data set; whatever its loader raises becomes one clear error.

    Args:
        name: a name of ``DatasetCatalog``.

    Raises:
        DatasetError: it cannot be loaded, or holds no image.
    """
    try:
        records = DatasetCatalog.get(name)
    except DatasetError:
        raise
    except Exception as error:  # of Detectron2's, pycocotools' or a user's loader
        json_file = MetadataCatalog.get(name).get("json_file")
        if json_file is not None:
            check_coco_file(json_file)  # says more precisely what is wrong with it
        where = f" ({json_file})" if json_file else ""
        raise DatasetError(
            f"Data set '{name}'{where} cannot be loaded: {type(error).__name__}: {error}. Check its files, and that "
            "DETECTRON2_DATASETS is the folder that holds them."
        ) from error
    if len(records) == 0:
        raise DatasetError(f"Data set '{name}' holds no image. Expected at least one.")
    return records


@contextlib.contextmanager
def naming_unreadable(names: Iterable[str]) -> Iterator[None]:
    """Context of work on data sets that were checked: what it raises when one of them changed names that one.

    An annotation file that is cut off under a run raises whatever pycocotools happens to meet. After such an error the
    data sets are read again.

    Args:
        names: of ``DatasetCatalog``.

    Raises:
        DatasetError: one of them cannot be loaded any more.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        if type(error).__module__ != DatasetError.__module__:  # ours say what is wrong
            for name in names:
                load_records(name)
        raise


def check_records(name: str, records: Sequence[Mapping[str, Any]], num_classes: int | None = None) -> None:
    """Check records in Detectron2's format, their boxes, and (a sample of) their images.

    Args:
        name: of the data set, for messages.
        records: as ``DatasetCatalog`` gives them.
        num_classes: classes of the annotations are below it; None if unknown.

    Raises:
        DatasetError: naming the data set, the image and the value.
    """
    seen: dict[Any, str] = {}
    without_area = 0
    for record in records:
        if not isinstance(record.get("file_name"), str):
            raise DatasetError(
                f"Data set '{name}': an image has file_name {record.get('file_name')!r}. Expected its path. Correct it."
            )
        where = f"Data set '{name}': '{record['file_name']}'"
        for key in ("width", "height"):
            if key in record and not (isinstance(record[key], int) and record[key] > 0):
                raise DatasetError(
                    f"{where} has {key} {record[key]!r}. Expected px, a whole number above 0. Correct it."
                )
        image_id = record.get("image_id")
        if image_id is not None and seen.setdefault(image_id, where) is not where:
            raise DatasetError(f"{where} has the image_id {image_id!r} of another image. Expected unique ids.")
        for annotation in record.get("annotations", ()):
            box, category = annotation.get("bbox"), annotation.get("category_id")
            numbers = () if box is None else (v.item() if hasattr(v, "item") else v for v in box)
            if box is None or len(box) not in (4, 5) or not all(map(is_finite, numbers)):
                raise DatasetError(
                    f"{where} has bbox {box!r}. Expected four finite numbers in px. Correct or delete it."
                )
            if not isinstance(category, int) or category < 0 or (num_classes is not None and category >= num_classes):
                wanted = "a whole number from 0" if num_classes is None else f"one of 0 to {num_classes - 1}"
                raise DatasetError(f"{where} has an annotation of class {category!r}. Expected {wanted}. Correct it.")
            if len(box) == 5:  # rotated: Detectron2 takes any sides
                continue
            is_xyxy = annotation.get("bbox_mode") == BoxMode.XYXY_ABS
            width, height = (box[2] - box[0], box[3] - box[1]) if is_xyxy else (box[2], box[3])
            if width < 0 or height < 0:
                raise DatasetError(f"{where} has bbox {list(box)!r} with a negative side. Correct or delete it.")
            without_area += width == 0 or height == 0
    if without_area:
        _logger.warning("Data set '%s': %d boxes have no area; training leaves them out.", name, without_area)
    step = -(-len(records) // MAX_IMAGES_OPENED)
    for record in records[::step]:
        size = (record["width"], record["height"]) if "width" in record and "height" in record else None
        check_image(record["file_name"], size)
