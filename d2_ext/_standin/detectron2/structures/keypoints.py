"""Keypoints of the objects of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures._rows import Rows


class Keypoints(Rows):
    """N objects with K keypoints each.

    Attributes:
        tensor: (N, K, 3) float32: x and y in px, and visibility: 0 not labeled, 1 hidden, 2 visible.
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | Sequence[Any]) -> None:
        """Raises an AssertionError if the shape is not (N, K, 3)."""
        self.tensor = torch.as_tensor(keypoints, dtype=torch.float32)
        if self.tensor.shape[2:] != (3,):
            raise AssertionError(f"Keypoints of shape (N, K, 3) were expected, not {tuple(self.tensor.shape)}.")
