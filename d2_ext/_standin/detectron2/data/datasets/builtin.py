"""COCO's own data sets, registered below ``$DETECTRON2_DATASETS``, or ``./datasets`` without it."""

from __future__ import annotations

import os

from .builtin_meta import COCO_CATEGORIES
from .coco import register_coco_instances

# Part of the names: folder of the images, file of the annotations
_COCO_PARTS = {
    "2014_train": ("train2014", "instances_train2014"),
    "2014_val": ("val2014", "instances_val2014"),
    "2014_minival": ("val2014", "instances_minival2014"),
    "2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "2017_train": ("train2017", "instances_train2017"),
    "2017_val": ("val2017", "instances_val2017"),
    "2017_test": ("test2017", "image_info_test2017"),
    "2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "2017_val_100": ("val2017", "instances_val2017_100"),
}


def register_all_coco(root: str) -> None:
    """Register COCO's data sets with boxes and masks in the folder ``root``/coco."""
    names, colors = ([thing[key] for thing in COCO_CATEGORIES] for key in ("name", "color"))
    ids = {thing["id"]: number for number, thing in enumerate(COCO_CATEGORIES)}
    for part, (images, annotations) in _COCO_PARTS.items():
        facts = {"thing_classes": names, "thing_colors": colors, "thing_dataset_id_to_contiguous_id": ids}
        file = f"coco/annotations/{annotations}.json"
        register_coco_instances(f"coco_{part}", facts, os.path.join(root, file), os.path.join(root, "coco", images))


register_all_coco(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
