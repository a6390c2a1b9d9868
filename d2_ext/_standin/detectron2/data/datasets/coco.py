"""COCO's annotation format: reading it into records, and writing records as such a file."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock

from detectron2._missing import refuse
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["load_coco_json", "convert_to_coco_json", "register_coco_instances"]

__getattr__ = refuse(__name__, ["load_sem_seg"])

logger = logging.getLogger(__name__)

# COCO counts keypoints by pixel, everything else by the corners of pixels.
_PIXEL_CENTER = 0.5


def load_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a file of COCO's instance (or keypoint) annotations.

    Args:
        json_file: path of the file.
        image_root: folder of the pictures, put before their file names.
        dataset_name: if given, category ids are mapped to 0..K-1 in ascending order, and ``thing_classes`` and
            ``thing_dataset_id_to_contiguous_id`` are stored in the metadata of that name.
        extra_annotation_keys: further keys of the annotations to carry over as they are.

    Returns:
        Records sorted by image id: ``file_name``, ``height``, ``width``, ``image_id``, and ``annotations`` with
        ``iscrowd``, ``bbox`` (XYWH px) and ``bbox_mode``, ``category_id``, ``segmentation``, ``keypoints`` as far as
        present. An annotation whose polygons are all invalid (fewer than three corners) is left out.

    Raises:
        KeyError: an annotation has a category that the file does not list.
        ValueError: an annotation has an empty ``bbox``.
    """
    from pycocotools.coco import COCO

    json_file = PathManager.get_local_path(os.fspath(json_file))
    timer = Timer()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json_file)
    if timer.seconds() > 1:
        logger.info("Loading %s takes %.2f seconds.", json_file, timer.seconds())

    id_map = None if dataset_name is None else _store_categories(coco, dataset_name)
    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    image_ids = sorted(coco.imgs)
    _check_annotation_ids(coco, image_ids, json_file)
    records, invalid = [], 0
    for image_id in image_ids:
        image = coco.imgs[image_id]
        parsed = [_parse_annotation(anno, image_id, keys, id_map) for anno in coco.imgToAnns[image_id]]
        annos = [anno for anno in parsed if anno is not None]
        invalid += len(parsed) - len(annos)
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": annos,
            }
        )
    logger.info("Loaded %d images in COCO format from %s", len(records), json_file)
    if invalid:
        logger.warning(
            "%s: left out %d instances whose polygons all have fewer than three corners; check how the file was made",
            json_file,
            invalid,
        )
    return records


def _store_categories(coco: Any, dataset_name: str) -> dict[int, int]:
    """Put class names and ids into the metadata; returns the map from the file's ids to 0..K-1."""
    meta = MetadataCatalog.get(dataset_name)
    ids = sorted(coco.getCatIds())
    meta.thing_classes = [coco.cats[category_id]["name"] for category_id in ids]
    if ids != [*range(1, len(ids) + 1)] and "coco" not in dataset_name:
        logger.warning("Category ids of '%s' are not 1..%d; they are mapped to 0..%d.", dataset_name, *_ends(ids))
    meta.thing_dataset_id_to_contiguous_id = {category_id: i for i, category_id in enumerate(ids)}
    return meta.thing_dataset_id_to_contiguous_id


def _ends(ids: Sequence[int]) -> tuple[int, int]:
    return len(ids), len(ids) - 1


def _check_annotation_ids(coco: Any, image_ids: Sequence[int], json_file: str) -> None:
    ids = [anno["id"] for image_id in image_ids for anno in coco.imgToAnns[image_id]]
    if len(ids) < len(coco.anns):
        logger.warning("%s has %d annotations, but only %d belong to its images.", json_file, len(coco.anns), len(ids))
    # COCO's own minival files of 2014 have a few duplicates.
    assert "minival" in json_file or len(set(ids)) == len(ids), f"annotation ids in '{json_file}' are not unique"


def _parse_annotation(
    anno: dict[str, Any], image_id: int, keys: Sequence[str], id_map: dict[int, int] | None
) -> dict[str, Any] | None:
    """One annotation of a record; None if it has polygons, but no valid one."""
    _check_annotation(anno, image_id)
    obj = {key: anno[key] for key in keys if key in anno}
    if not len(obj.get("bbox", [0.0])):
        raise ValueError(f"image {image_id}: an annotation has an empty 'bbox', which must be [x, y, width, height]")
    segmentation = anno.get("segmentation")
    if segmentation:
        segmentation = _parse_segmentation(segmentation)
        if not segmentation:
            return None
        obj["segmentation"] = segmentation
    if anno.get("keypoints"):
        obj["keypoints"] = _shift_keypoints(anno["keypoints"], _PIXEL_CENTER)
    obj["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map is not None:
        if obj["category_id"] not in id_map:
            raise KeyError(f"image {image_id}: category_id {obj['category_id']} is not among the file's 'categories'")
        obj["category_id"] = id_map[obj["category_id"]]
    return obj


def _check_annotation(anno: dict[str, Any], image_id: int) -> None:
    assert anno.get("ignore", 0) == 0, f"image {image_id}: 'ignore' in an annotation of COCO's format is not supported"
    assert image_id == anno["image_id"], anno


def _parse_segmentation(segmentation: Any) -> Any:
    """Compressed RLE of any RLE; of a list of polygons the valid ones."""
    if not isinstance(segmentation, dict):
        return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def _shift_keypoints(keypoints: Sequence[float], offset: float) -> list[float]:
    """Add ``offset`` to x and y of [x, y, visibility, ...]."""
    return [value if position % 3 == 2 else value + offset for position, value in enumerate(keypoints)]


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """Make the content of an annotation file of COCO's format from a registered data set.

    Args:
        dataset_name: registered, with ``thing_classes`` in its metadata.

    Returns:
        ``info``, ``images``, ``categories``, ``licenses`` and, if there are any, ``annotations`` with ids from 1,
        boxes XYWH px rounded to 3 decimals, and the data set's own category ids where the metadata maps them.
    """
    metadata = MetadataCatalog.get(dataset_name)
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", {})
    original_id = {v: k for k, v in contiguous.items()} or dict(enumerate(range(len(metadata.thing_classes))))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    logger.info("Converting dataset dicts into COCO format")
    for index, record in enumerate(DatasetCatalog.get(dataset_name)):
        image_id = record.get("image_id", index)
        size = {"width": int(record["width"]), "height": int(record["height"])}
        images.append({"id": image_id, **size, "file_name": str(record["file_name"])})
        for anno in record.get("annotations", []):
            category_id = int(original_id[anno["category_id"]])
            annotations.append(_to_coco_annotation(anno, len(annotations) + 1, image_id, category_id))
    logger.info("Conversion finished, #images: %d, #annotations: %d", len(images), len(annotations))
    coco_dict = {
        "info": {"date_created": str(datetime.datetime.now()), "description": f"Made from data set '{dataset_name}'."},
        "images": images,
        "categories": [{"id": original_id[i], "name": name} for i, name in enumerate(metadata.thing_classes)],
        "licenses": None,
    }
    if annotations:
        coco_dict["annotations"] = annotations
    return coco_dict


def _to_coco_annotation(anno: dict[str, Any], anno_id: int, image_id: Any, category_id: int) -> dict[str, Any]:
    box = np.asarray(anno["bbox"], dtype=float)
    if box.shape not in ((4,), (5,)):
        raise ValueError(f"image {image_id}: 'bbox' must have 4 numbers (5 if rotated), got {anno['bbox']}")
    mode = BoxMode.XYWH_ABS if len(box) == 4 else BoxMode.XYWHA_ABS
    box = BoxMode.convert(box.tolist(), anno["bbox_mode"], mode)
    segmentation = anno.get("segmentation")
    coco_anno = {
        "id": anno_id,
        "image_id": image_id,
        "bbox": [round(float(v), 3) for v in box],
        "area": float(box[2] * box[3]) if segmentation is None else _mask_area(segmentation),
        "iscrowd": int(anno.get("iscrowd", 0)),
        "category_id": category_id,
    }
    if "keypoints" in anno:
        keypoints = _shift_keypoints(anno["keypoints"], -_PIXEL_CENTER)
        coco_anno["keypoints"] = keypoints
        coco_anno["num_keypoints"] = anno.get("num_keypoints", sum(v > 0 for v in keypoints[2::3]))
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
        segmentation = {**segmentation, "counts": segmentation["counts"].decode("ascii")}  # json has no bytes
    if segmentation is not None:
        coco_anno["segmentation"] = segmentation
    return coco_anno


def _mask_area(segmentation: Any) -> float:
    """Area in px^2 of polygons (their sum) or of an RLE."""
    if isinstance(segmentation, list):
        return PolygonMasks([segmentation]).area()[0].item()
    if isinstance(segmentation, dict):
        return float(mask_util.area(segmentation))
    raise TypeError(f"segmentation must be a list of polygons or an RLE dict, got {type(segmentation)}")


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered data set as a file of COCO's format.

    Args:
        dataset_name: see :func:`convert_to_coco_dict`.
        output_file: path of the file; processes that write the same one wait for each other.
        allow_cached: keep the file if it exists, whatever data set it was made from.
    """
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):
        if PathManager.exists(output_file) and allow_cached:
            logger.warning("Re-using '%s' as it is; delete it if data set '%s' has changed.", output_file, dataset_name)
            return
        logger.info("Converting annotations of dataset '%s' to COCO format ...", dataset_name)
        content = json.dumps(convert_to_coco_dict(dataset_name))
        unfinished = f"{output_file}.tmp"
        with PathManager.open(unfinished, "w") as stream:
            stream.write(content)
        shutil.move(unfinished, output_file)


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a data set in COCO's format; the file is read when the data set is used.

    Args:
        name: of the data set. If it is taken, its loader stays as it is.
        metadata: what else is known about it; {} for nothing.
        json_file: annotation file.
        image_root: folder of the pictures.
    """
    for given, kinds in ((name, str), (json_file, (str, os.PathLike)), (image_root, (str, os.PathLike))):
        assert isinstance(given, kinds), given
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    facts = {"json_file": json_file, "image_root": image_root, "evaluator_type": "coco", **metadata}
    MetadataCatalog.get(name).set(**facts)
