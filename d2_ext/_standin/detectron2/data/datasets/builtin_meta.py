"""COCO's classes."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from typing import Any

from detectron2._missing import refuse
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

__getattr__ = refuse(__name__, "COCO_PERSON_KEYPOINT_FLIP_MAP COCO_PERSON_KEYPOINT_NAMES KEYPOINT_CONNECTION_RULES")


COCO_CATEGORIES: list[dict[str, Any]] = [
    # RGB, 0..255; successive colors are far apart on the color wheel
    {"id": i, "name": name, "isthing": 1, "color": [round(255 * c) for c in hsv_to_rgb(i * 0.618 % 1, 0.9, 0.7 + i % 2 / 4)]}
    for i, name in enumerate(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")  # N/A: ids that COCO left out
]
