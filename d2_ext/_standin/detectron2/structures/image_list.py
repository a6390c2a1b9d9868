"""Images of unequal sizes as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers.wrappers import cat, shapes_to_tensor
from torch import Tensor
from torch.nn import functional as F


class ImageList:
    """N images, each in the upper left corner of its part of ``tensor``, (N, ..., H, W).

    ``image_sizes`` are those before padding, (height, width); tensors while a model is traced.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor, self.image_sizes = tensor, image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Image ``idx`` without its padding, (..., height, width)."""
        rows, columns = map(slice, self.image_sizes[idx])
        return self.tensor[idx, ..., rows, columns]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """The batch on another device or of another dtype, see ``Tensor.to``."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> ImageList:
        """Pad images at the right and at the bottom to a common size.

        Args:
            tensors: list or tuple of images (..., H, W), equal but for H and W.
            size_divisibility: height and width of the batch become multiples of it; 0 and 1 add nothing.
            pad_value: value of the padding.
            padding_constraints: what a backbone asks for. ``"size_divisibility"`` replaces the argument, a positive
                ``"square_size"`` the height and width of the largest image.

        Raises:
            AssertionError: if ``tensors`` is empty, no list or tuple of tensors, or the images differ in channels.
        """
        if not tensors or not isinstance(tensors, (list, tuple)) or not all(isinstance(t, Tensor) for t in tensors):
            raise AssertionError(f"A list of one or more tensors was expected, not {type(tensors).__name__}.")
        if any(image.shape[:-2] != tensors[0].shape[:-2] for image in tensors):
            raise AssertionError(f"Images of equal channels were expected, not {[tuple(t.shape) for t in tensors]}.")
        rules = {"size_divisibility": size_divisibility, "square_size": 0, **(padding_constraints or {})}
        sizes = [shapes_to_tensor(image.shape[-2:]) for image in tensors]  # with tensors, a trace holds for any sizes
        common = torch.stack(sizes).amax(dim=0)
        if rules["square_size"] > 0:
            common = torch.full_like(common, rules["square_size"])
        if (divisor := rules["size_divisibility"]) > 1:
            common = (common + divisor - 1).div(divisor, rounding_mode="floor") * divisor
        rows, columns = common.unbind() if torch.jit.is_tracing() else common.tolist()
        padded = [F.pad(t[None], (0, columns - t.shape[-1], 0, rows - t.shape[-2]), value=pad_value) for t in tensors]
        known = sizes if torch.jit.is_tracing() else [tuple(size.tolist()) for size in sizes]
        return ImageList(cat(padded), known)
