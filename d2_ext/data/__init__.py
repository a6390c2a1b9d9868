"""Data sets and mappers; importing it registers the built-in data sets."""

from d2_ext.data import builtin
from d2_ext.data.folder import register_folder
from d2_ext.data.formats.coco import register_coco_folder
from d2_ext.data.formats.uavdt import UAVDT_CLASSES, UAVDT_SEQUENCES, load_uavdt, register_uavdt
from d2_ext.data.formats.visdrone import VISDRONE_CLASSES, load_visdrone, register_visdrone
from d2_ext.data.hit_uav import HIT_UAV_CLASSES, load_hit_uav, register_hit_uav
from d2_ext.data.mapper import CheckedMapper, IgnoreRegionMapper

__all__ = [
    "HIT_UAV_CLASSES",
    "UAVDT_CLASSES",
    "UAVDT_SEQUENCES",
    "VISDRONE_CLASSES",
    "CheckedMapper",
    "IgnoreRegionMapper",
    "load_hit_uav",
    "load_uavdt",
    "load_visdrone",
    "register_coco_folder",
    "register_folder",
    "register_hit_uav",
    "register_uavdt",
    "register_visdrone",
]
