"""What an image holds and what a detector finds in it: boxes, masks, and the images of a batch."""

from detectron2._missing import refuse
from detectron2.structures.boxes import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances
from detectron2.structures.masks import BitMasks, PolygonMasks, polygons_to_bitmask

__all__ = [
    "BitMasks", "BoxMode", "Boxes", "ImageList", "Instances", "PolygonMasks", "pairwise_ioa",
    "pairwise_iou", "pairwise_point_box_distance", "polygons_to_bitmask",
]  # fmt: skip

__getattr__ = refuse(__name__, "Keypoints ROIMasks RotatedBoxes heatmaps_to_keypoints pairwise_iou_rotated")
