"""Classes of COCO, and the keypoints of its persons."""

from __future__ import annotations

import colorsys
from typing import Any

# In the order of their ids, which run from 1 to 90 and leave out those that no annotation has.
_COCO_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
_COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def _class_color(index: int) -> list[int]:
    """RGB in 0..255; hues a golden angle apart, so that neighbours in the list differ clearly."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.9 - 0.3 * (index % 3 == 1), 0.95 - 0.25 * (index % 2))
    return [round(255 * channel) for channel in (red, green, blue)]


# Only "things" (countable objects); the classes of the panoptic task are outside the subset.
COCO_CATEGORIES: list[dict[str, Any]] = [
    {"id": category_id, "name": name, "isthing": 1, "color": _class_color(index)}
    for index, (category_id, name) in enumerate(
        zip(sorted(set(range(1, 91)) - _COCO_UNUSED_IDS), " ".join(_COCO_NAMES.split()).split(", "), strict=True)
    )
]

_PAIRED_PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSON_KEYPOINT_NAMES = ("nose", *(f"{side}_{part}" for part in _PAIRED_PARTS for side in ("left", "right")))
COCO_PERSON_KEYPOINT_FLIP_MAP = tuple((f"left_{part}", f"right_{part}") for part in _PAIRED_PARTS)

_BONES = (
    "left_ear left_eye, right_ear right_eye, left_eye nose, nose right_eye, left_shoulder right_shoulder, "
    "left_shoulder left_elbow, right_shoulder right_elbow, left_elbow left_wrist, right_elbow right_wrist, "
    "left_hip right_hip, left_hip left_knee, right_hip right_knee, left_knee left_ankle, right_knee right_ankle"
)
# Pairs of keypoints between which to draw a line, and the colour of it.
KEYPOINT_CONNECTION_RULES = [
    (*bone.split(), tuple(_class_color(index))) for index, bone in enumerate(_BONES.split(", "))
]


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """Metadata shared by the splits of ``"coco"`` or ``"coco_person"``."""
    if dataset_name == "coco":
        return {
            "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(COCO_CATEGORIES)},
            "thing_classes": [c["name"] for c in COCO_CATEGORIES],
            "thing_colors": [c["color"] for c in COCO_CATEGORIES],
        }
    if dataset_name == "coco_person":
        return {
            "thing_classes": ["person"],
            "keypoint_names": COCO_PERSON_KEYPOINT_NAMES,
            "keypoint_flip_map": COCO_PERSON_KEYPOINT_FLIP_MAP,
            "keypoint_connection_rules": KEYPOINT_CONNECTION_RULES,
        }
    raise KeyError(f"no built-in metadata for '{dataset_name}'; there is 'coco' and 'coco_person'")
