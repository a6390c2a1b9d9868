"""Boxes, the objects of one picture, and batches of pictures."""

from detectron2._missing import refuse
from detectron2.structures.boxes import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances

__all__ = [
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
]

__getattr__ = refuse(
    __name__,
    [
        "BitMasks",
        "Keypoints",
        "PolygonMasks",
        "ROIMasks",
        "RotatedBoxes",
        "heatmaps_to_keypoints",
        "pairwise_iou_rotated",
        "polygons_to_bitmask",
    ],
)
