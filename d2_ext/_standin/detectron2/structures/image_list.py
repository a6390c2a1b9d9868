"""A batch of pictures of different sizes in one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers.wrappers import shapes_to_tensor
from torch import Tensor
from torch.nn import functional as F


class ImageList:
    """Pictures padded on the right and at the bottom.

    Attributes:
        tensor: (N, ..., H, W), padded.
        image_sizes: (height, width) of each picture before padding, in px; tensors while tracing.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor, self.image_sizes = tensor, image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """One picture without its padding."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """The batch on another device or with another dtype."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Device of the tensor."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pad pictures to a common size.

        Args:
            tensors: each (..., Hi, Wi), with equal leading sizes.
            size_divisibility: make height and width multiples of it; 0 and 1 ask for nothing.
            pad_value: value of the padding.
            padding_constraints: may hold ``size_divisibility``, which replaces the argument, and ``square_size``, the
                side of the padded pictures in px if above 0.
        """
        assert isinstance(tensors, (tuple, list)), f"from_tensors takes a list, not {type(tensors).__name__}."
        assert len(tensors) > 0, "from_tensors needs at least one picture."
        for t in tensors:
            assert isinstance(t, Tensor), f"from_tensors takes tensors, not {type(t).__name__}."
            assert t.shape[:-2] == tensors[0].shape[:-2], f"Leading sizes differ: {tuple(t.shape)}."
        sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        size_tensors = [shapes_to_tensor(list(size)) for size in sizes]
        padded = _padded_size(torch.stack(size_tensors).amax(0), size_divisibility, padding_constraints or {})
        height, width = padded.unbind()
        if not torch.jit.is_tracing():
            height, width = int(height), int(width)
        images = [F.pad(t, [0, width - w, 0, height - h], value=pad_value) for t, (h, w) in zip(tensors, sizes)]
        batch = images[0][None] if len(images) == 1 else torch.stack(images)
        return ImageList(batch.contiguous(), size_tensors if torch.jit.is_tracing() else sizes)


def _padded_size(largest: Tensor, divisibility: int, constraints: dict[str, int]) -> Tensor:
    """Common (height, width) of pictures of at most ``largest``, as tensors, so that traces hold for other sizes."""
    square = constraints.get("square_size", 0)
    if square > 0:
        largest = torch.full_like(largest, square)
    divisibility = constraints.get("size_divisibility", divisibility)
    if divisibility > 1:
        largest = (largest + (divisibility - 1)).div(divisibility, rounding_mode="floor") * divisibility
    return largest
