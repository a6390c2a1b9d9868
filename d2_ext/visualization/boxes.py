"""Boxes on an image of any size, quickly: for videos and thousands of images.

``draw_detections`` sets labels so that they do not cover each other, and enlarges small images. This
here keeps the image's size and draws with OpenCV, for many images and videos.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances

FONT = cv2.FONT_HERSHEY_SIMPLEX
LARGEST_LETTER, THICKEST_LINE = 0.8, 4  # on images of some thousand px labels would hide the objects
GOLDEN_RATIO = 0.618034  # hues a golden section apart stay different for any number of classes


def draw_boxes(image: np.ndarray, instances: Instances, metadata: Metadata, *, labels: bool = True) -> np.ndarray:
    """Draw boxes with class and score; lines and letters grow with the image up to a limit.

    Labels too large for an image are left out.

    Args:
        image: (H, W, 3) uint8, BGR; not changed.
        instances: on the CPU, with ``pred_boxes`` (XYXY px), ``scores``, ``pred_classes``.
        metadata: ``thing_classes`` and ``thing_colors`` (RGB) are used if they are there.
        labels: write class and score beside each box.

    Returns:
        uint8 BGR, of the same size.
    """
    drawn = image.copy()
    longer = max(image.shape[:2])
    thickness = min(max(1, round(longer / 800)), THICKEST_LINE)
    letter = min(max(0.35, longer / 2600), LARGEST_LETTER)
    names, colors = metadata.get("thing_classes", []), metadata.get("thing_colors", [])
    rows = zip(instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist(), instances.scores.tolist())
    for box, number, score in reversed(list(rows)):  # the best end on top
        red, green, blue = colors[number] if number < len(colors) else class_color(number)
        x0, y0, x1, y1 = (round(x) for x in box)
        cv2.rectangle(drawn, (x0, y0), (x1, y1), (blue, green, red), thickness)
        if not labels:
            continue
        name = names[number] if number < len(names) else str(number)
        # The label stands on a filled ground above the box's corner, moved into the image.
        text = f"{name} {score:.0%}"
        (width, height), base = cv2.getTextSize(text, FONT, letter, 1)
        if width > drawn.shape[1] or height + base > drawn.shape[0]:
            continue
        x, y = min(max(x0, 0), drawn.shape[1] - width), max(y0, height + base)
        cv2.rectangle(drawn, (x, y - height - base), (x + width, y), (blue, green, red), -1)
        bright = red * 0.299 + green * 0.587 + blue * 0.114 > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        cv2.putText(drawn, text, (x, y - base // 2 - 1), FONT, letter, ink, 1, cv2.LINE_AA)
    return drawn


def class_color(number: int) -> tuple[int, int, int]:
    """A color for each class, RGB 0 to 255; neighboring numbers differ much."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
