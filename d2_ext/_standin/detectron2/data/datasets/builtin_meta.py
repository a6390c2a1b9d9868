"""COCO's classes."""

from __future__ import annotations

import colorsys
from typing import Any

from detectron2._missing import refuse
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

__getattr__ = refuse(
    __name__, ["COCO_PERSON_KEYPOINT_FLIP_MAP", "COCO_PERSON_KEYPOINT_NAMES", "KEYPOINT_CONNECTION_RULES"]
)


def _distinct_color(number: int) -> list[int]:
    """RGB, 0..255; successive numbers are far apart on the color wheel."""
    return [round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618 % 1, 0.9, 0.7 + 0.25 * (number % 2))]


COCO_CATEGORIES: list[dict[str, Any]] = [
    {"id": number, "name": name, "isthing": 1, "color": _distinct_color(number)}
    for number, name in enumerate(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")  # N/A: ids that COCO left out
]
