"""Ignore regions in COCO's metric: as crowds of every class.

COCO's metric has its own word for "do not judge here": a crowd annotation. A detection that finds no object but has
``intersection / own area >= IoU threshold`` with a crowd of its class counts neither way, and any number of detections
may do so. A region belongs to no class, so it becomes a crowd of each. At the threshold 0.5 that is VisDrone's rule
for one region; at higher ones a detection that only half lies in a region is judged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d2_ext.data.formats.coco_json import add_ignore_regions
from d2_ext.files import replacing

from detectron2.data import DatasetCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict

__all__ = ["coco_with_regions", "write_coco_with_regions"]


def coco_with_regions(dataset_name: str) -> dict[str, Any]:
    """Content of a COCO json for a registered data set of boxes; each ignore region is a crowd of every class."""
    content = convert_to_coco_dict(dataset_name)
    add_ignore_regions(content, DatasetCatalog.get(dataset_name))
    return content


def write_coco_with_regions(dataset_name: str, folder: str) -> str:
    """Write :func:`coco_with_regions` of a data set.

    Args:
        dataset_name: a registered data set of boxes.
        folder: made if it is not there.

    Returns:
        The path of the json.
    """
    content = coco_with_regions(dataset_name)
    path = Path(folder) / f"{dataset_name}_with_regions.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))
    return str(path)
