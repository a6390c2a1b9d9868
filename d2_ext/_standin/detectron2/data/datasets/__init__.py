"""Data sets in COCO's format, and the names of COCO itself."""

from detectron2._missing import refuse

from . import builtin as _builtin  # noqa: F401  # registers COCO's names
from .coco import convert_to_coco_json, load_coco_json, register_coco_instances

__all__ = ["convert_to_coco_json", "load_coco_json", "register_coco_instances"]
_MISSING = "get_lvis_instances_meta load_lvis_json load_sem_seg load_voc_instances register_coco_panoptic "
_MISSING += "register_coco_panoptic_separated register_lvis_instances register_pascal_voc"
__getattr__ = refuse(__name__, _MISSING)
