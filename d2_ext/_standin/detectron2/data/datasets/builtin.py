"""Registers COCO's splits below the folder that the environment variable ``DETECTRON2_DATASETS`` names."""

from __future__ import annotations

import os

from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances

# Name: (folder of the pictures, annotation file), both below coco/.
_SPLITS = {
    "coco_2014_train": ("train2014", "instances_train2014"),
    "coco_2014_val": ("val2014", "instances_val2014"),
    "coco_2014_minival": ("val2014", "instances_minival2014"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "coco_2017_train": ("train2017", "instances_train2017"),
    "coco_2017_val": ("val2017", "instances_val2017"),
    "coco_2017_test": ("test2017", "image_info_test2017"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100"),
}
_PREDEFINED_SPLITS_COCO = {
    "coco": {
        name: (f"coco/{pictures}", f"coco/annotations/{annotations}.json")
        for name, (pictures, annotations) in _SPLITS.items()
    },
    "coco_person": {
        f"keypoints_{name}": (
            f"coco/{pictures}",
            f"coco/annotations/{annotations.replace('instances', 'person_keypoints')}.json",
        )
        for name, (pictures, annotations) in _SPLITS.items()
        if "test" not in name
    },
}


def register_all_coco(root: str) -> None:
    """Register the splits of COCO below ``root``; nothing is read before a data set is used."""
    for kind, splits in _PREDEFINED_SPLITS_COCO.items():
        for name, (image_root, json_file) in splits.items():
            register_coco_instances(
                name, _get_builtin_metadata(kind), os.path.join(root, json_file), os.path.join(root, image_root)
            )


register_all_coco(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
