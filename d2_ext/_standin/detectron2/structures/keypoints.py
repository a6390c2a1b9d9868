"""Keypoint annotations of the instances of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2._missing import refuse

__all__ = ["Keypoints"]

__getattr__ = refuse(__name__, ["heatmaps_to_keypoints"])


class Keypoints:
    """Points with visibility: 0 not labelled (x = y = 0), 1 hidden, 2 visible.

    Args:
        keypoints: (N, K, 3) of x px, y px, visibility.

    Attributes:
        tensor: the same as float32.
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | Sequence[Any]) -> None:
        if not isinstance(keypoints, torch.Tensor):
            # One array first: torch is slow, and warns, on a list of arrays.
            keypoints = torch.from_numpy(np.asarray(keypoints, dtype="float32"))
        assert keypoints.dim() == 3, f"expected (N, K, 3), got {tuple(keypoints.shape)}"
        assert keypoints.shape[2] == 3, f"expected (N, K, 3), got {tuple(keypoints.shape)}"
        self.tensor = keypoints.to(torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | torch.Tensor) -> Keypoints:
        return Keypoints(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)})"

    @staticmethod
    def cat(keypoints_list: Sequence[Keypoints]) -> Keypoints:
        """All instances of a non-empty list."""
        return type(keypoints_list[0])(torch.cat([keypoints.tensor for keypoints in keypoints_list]))
