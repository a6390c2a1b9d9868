"""Data sets and mappers; importing it registers the built-in data sets."""

from d2_ext.data import builtin
from d2_ext.data.mapper import IgnoreRegionMapper
from d2_ext.data.register import register_coco_folder
from d2_ext.data.visdrone import VISDRONE_CLASSES, load_visdrone, register_visdrone

__all__ = ["VISDRONE_CLASSES", "IgnoreRegionMapper", "load_visdrone", "register_coco_folder", "register_visdrone"]
