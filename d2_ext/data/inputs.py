"""An image from a file as a model's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from PIL import UnidentifiedImageError


def open_image(path: str | Path, channels: str) -> np.ndarray:
    """Read an image (H, W, 3) uint8, its channels ordered as "RGB" or "BGR".

    Raises:
        DatasetError: there is no such file, or it is no image.
    """
    if not Path(path).is_file():
        raise DatasetError(f"There is no image {Path(path).resolve()}.")
    try:
        return read_image(str(path), channels)
    except (UnidentifiedImageError, OSError) as error:
        raise DatasetError(f"{Path(path).resolve()} cannot be read as an image: {error}") from error


def read_input(cfg: CfgNode, path: str | Path) -> dict[str, Any]:
    """Read an image as in testing: resized, channels in the order of the model.

    Args:
        cfg: its ``INPUT`` counts.
        path: of the image.

    Returns:
        Detectron2's input: ``image`` (3, H, W) uint8, and ``height`` and ``width`` of the file in px.

    Raises:
        DatasetError: there is no such file, or it is no image.
    """
    image = open_image(path, cfg.INPUT.FORMAT)
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(image).apply_image(image)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}
