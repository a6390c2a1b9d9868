"""Images of ground truth as the detector will see it: after augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2_ext.visualization.images import make_visualizer

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import convert_image_to_rgb

__all__ = ["contact_sheet", "draw_ground_truth"]

IGNORE_COLOR = (0.55, 0.55, 0.55)
MARGIN = 4  # px between images of a sheet
_GOLDEN = 0.618034  # hues a golden angle apart differ clearly


def draw_ground_truth(mapped: Mapping[str, Any], metadata: Metadata, image_format: str) -> np.ndarray:
    """Draw what a training mapper gives.

    Args:
        mapped: ``image`` (C, H, W) in ``image_format`` and ``instances`` with ``gt_boxes`` XYXY px and ``gt_classes``;
            class -1 are ignore regions, drawn gray.
        metadata: names of the classes.
        image_format: ``INPUT.FORMAT``.

    Returns:
        uint8 BGR; small images are enlarged.
    """
    rgb = convert_image_to_rgb(mapped["image"].permute(1, 2, 0), image_format)
    image = np.ascontiguousarray(rgb[:, :, ::-1]).astype(np.uint8)
    truth = mapped["instances"]
    classes = truth.gt_classes.tolist()
    names = metadata.thing_classes
    colors = []
    for k in classes:
        hue = round(k * _GOLDEN % 1.0 * 179)
        b, g, r = cv2.cvtColor(np.array([[[hue, 200, 240]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0] / 255
        colors.append(IGNORE_COLOR if k < 0 else (float(r), float(g), float(b)))
    drawn = make_visualizer(image, metadata).overlay_instances(
        boxes=truth.gt_boxes.tensor.to(torch.float32).numpy(),
        labels=["ignored" if k < 0 else names[k] for k in classes],
        assigned_colors=colors,
    )
    return np.ascontiguousarray(drawn.get_image()[:, :, ::-1])


def contact_sheet(images: Sequence[np.ndarray], *, columns: int = 4, side: int = 480) -> np.ndarray:
    """Lay (H, W, 3) images of any sizes out in rows on white, each scaled to a longer side of ``side`` px."""
    columns = min(columns, len(images))
    small = []
    for image in images:
        scale = side / max(image.shape[:2])
        size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
        small.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))
    rows = []
    for start in range(0, len(small), columns):
        row = small[start : start + columns]
        canvas = np.full((max(p.shape[0] for p in row) + MARGIN, columns * (side + MARGIN), 3), 255, np.uint8)
        for column, image in enumerate(row):
            left = column * (side + MARGIN)
            canvas[: image.shape[0], left : left + image.shape[1]] = image
        rows.append(canvas)
    return np.vstack(rows)
