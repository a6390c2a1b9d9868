"""COCO's format: to records, from records, and registration."""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

from detectron2.structures import Boxes, BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "register_coco_instances"]

logger = logging.getLogger(__name__)

_KEPT_KEYS = ("iscrowd", "bbox", "category_id")


def load_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a file in COCO's format.

    Args:
        json_file: the file.
        image_root: folder of the images.
        dataset_name: its metadata gets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``, and records have
            classes 0, 1, ... in the order of the file's category ids. Without a name, records have the file's ids.
        extra_annotation_keys: of annotations, that records shall keep.

    Gives a record for each image, by their ids. Objects with polygons of fewer than three corners only are left out.
    AssertionError if two annotations have the same id, or one says ``ignore``; ValueError for an empty box; KeyError
    for a category that the file does not list.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = COCO(PathManager.get_local_path(str(json_file)))
    class_ids = _contiguous_ids(coco, dataset_name) if dataset_name is not None else None
    extra = tuple(extra_annotation_keys or ())
    if "minival" not in str(json_file):  # COCO's own minival files of 2014 have ids twice
        ids = [anno["id"] for annos in coco.imgToAnns.values() for anno in annos]
        assert len(set(ids)) == len(ids), f"{json_file} has annotations with the same id. Expected each id once."
    records, dropped = [], 0
    for image_id in sorted(coco.imgs):
        image, annos = coco.imgs[image_id], coco.imgToAnns[image_id]
        objects = [_record_object(anno, class_ids, extra) for anno in annos]
        record = {"file_name": os.path.join(image_root, image["file_name"]), "image_id": image_id}
        record.update({key: image[key] for key in ("height", "width")})
        record["annotations"] = [found for found in objects if found is not None]
        dropped += len(objects) - len(record["annotations"])
        records.append(record)
    logger.info("%s: %d images", json_file, len(records))
    if dropped:
        logger.warning("%s: %d objects are left out, as their polygons have too few corners.", json_file, dropped)
    return records


def _contiguous_ids(coco: COCO, dataset_name: str) -> dict[int, int]:
    """From the file's category ids to 0, 1, ...; stored, with the names, as metadata."""
    ids = {category_id: number for number, category_id in enumerate(sorted(coco.cats))}
    if list(ids) != list(range(1, len(ids) + 1)):
        logger.warning("Category ids of %r are not 1 to %d; classes are 0 to %d.", dataset_name, len(ids), len(ids) - 1)
    names = [coco.cats[category_id]["name"] for category_id in ids]
    MetadataCatalog.get(dataset_name).set(thing_classes=names, thing_dataset_id_to_contiguous_id=ids)
    return ids


def _record_object(
    anno: dict[str, Any], class_ids: dict[int, int] | None, extra: tuple[str, ...]
) -> dict[str, Any] | None:
    """A record's annotation from COCO's; None if the polygons are all invalid."""
    assert anno.get("ignore", 0) == 0, f"Annotation {anno['id']} has ignore={anno['ignore']}, which COCO does not know."
    if "bbox" in anno and not anno["bbox"]:
        raise ValueError(f"bbox of annotation {anno['id']} (image {anno['image_id']}) is empty. Expected x, y, w, h.")
    found = {key: anno[key] for key in (*_KEPT_KEYS, *extra) if key in anno}
    if anno.get("segmentation"):
        shape = _valid_shape(anno["segmentation"])
        if not shape:
            return None
        found["segmentation"] = shape
    if class_ids is not None:
        if anno["category_id"] not in class_ids:
            raise KeyError(f"Annotation {anno['id']} has category_id {anno['category_id']}, which the file does not list.")
        found["category_id"] = class_ids[anno["category_id"]]
    return {**found, "bbox_mode": BoxMode.XYWH_ABS}


def _valid_shape(segmentation: Any) -> Any:
    """The polygons with at least three corners, or a compressed RLE."""
    if not isinstance(segmentation, Mapping):
        return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered data set in COCO's format, for a JSON file; without ``annotations`` if no image has any.

    Category ids are those of ``thing_dataset_id_to_contiguous_id`` in its metadata, or 0, 1, ... Boxes are rounded to
    0.001 px. TypeError for a segmentation that is neither polygons nor RLE.
    """
    records, meta = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    given = meta.get("thing_dataset_id_to_contiguous_id") or {number: number for number in range(len(meta.thing_classes))}
    ids = {number: category_id for category_id, number in given.items()}
    images, annotations = [], []
    for number, record in enumerate(records):
        image_id = record.get("image_id", number)
        size = {"width": int(record["width"]), "height": int(record["height"])}
        images.append({"id": image_id, **size, "file_name": str(record["file_name"])})
        for anno in record.get("annotations", ()):
            first = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[anno["category_id"]]}
            annotations.append({**first, **_coco_object(anno)})
    logger.info("Data set %r in COCO's format: %d images, %d annotations", dataset_name, len(images), len(annotations))
    written = str(datetime.datetime.now())
    return {
        "info": {"date_created": written, "description": f"Data set {dataset_name}, written by Detectron2's stand-in"},
        "licenses": None,
        "images": images,
        "categories": [{"id": ids[number], "name": name} for number, name in enumerate(meta.thing_classes)],
        **({"annotations": annotations} if annotations else {}),
    }


def _coco_object(anno: dict[str, Any]) -> dict[str, Any]:
    """What COCO keeps of a record's annotation, without the ids."""
    box = BoxMode.convert(np.asarray(anno["bbox"]).tolist(), anno["bbox_mode"], BoxMode.XYWH_ABS)
    found: dict[str, Any] = {"bbox": [round(float(value), 3) for value in box], "iscrowd": int(anno.get("iscrowd", 0))}
    shape = anno.get("segmentation")
    if isinstance(shape, list):
        found |= {"segmentation": shape, "area": PolygonMasks([shape]).area()[0].item()}
    elif isinstance(shape, Mapping):
        counts = shape["counts"]
        found["segmentation"] = {**shape, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
        found["area"] = float(mask_util.area(shape))
    elif shape is None:
        corners = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        found["area"] = Boxes([corners]).area()[0].item()  # px, of float32 corners
    else:
        raise TypeError(f"A segmentation is a {type(shape).__name__}. Expected a list of polygons, or an RLE dict.")
    return found


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered data set as a file in COCO's format; an existing one stays, unless ``allow_cached`` is False."""
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):
        if allow_cached and PathManager.exists(output_file):
            logger.warning("%s exists and is used again. Delete it if data set %r has changed.", output_file, dataset_name)
            return
        path = PathManager.get_local_path(output_file)
        with open(f"{path}.tmp", "w") as file:
            json.dump(convert_to_coco_dict(dataset_name), file)
        os.replace(f"{path}.tmp", path)  # nobody ever reads a part of it


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a data set in COCO's format, to be read by :func:`load_coco_json` when it is asked for.

    Its metadata gets ``json_file``, ``image_root``, ``evaluator_type`` and ``metadata``. A loader that has the name already
    stays.
    """
    for value, types in ((name, str), (json_file, (str, os.PathLike)), (image_root, (str, os.PathLike))):
        assert isinstance(value, types), f"Got {value!r} for data set {name!r}. Expected {types}."
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, functools.partial(load_coco_json, json_file, image_root, dataset_name=name))
    facts = {"json_file": json_file, "image_root": image_root, "evaluator_type": "coco"}
    MetadataCatalog.get(name).set(**facts, **metadata)
