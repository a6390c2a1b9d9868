"""What boxes and masks have in common: a tensor with one row for each object of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self


class Rows:
    """N objects, one in each row of ``tensor``, (N, ...); a subclass checks the shape when it is made."""

    tensor: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same objects on another device, see ``Tensor.to``."""
        return type(self)(self.tensor.to(*args, **kwargs))  # type: ignore[call-arg]

    @property
    def device(self) -> torch.device:
        """Where the tensor is."""
        return self.tensor.device

    def __getitem__(self, item: Any) -> Self:
        """Some of the objects, by an integer, slice, list or tensor of indices, or a (N,) mask."""
        rows = self.tensor[item]
        return type(self)(rows[None] if isinstance(item, int) else rows)  # type: ignore[call-arg]

    def __iter__(self) -> Iterator[Tensor]:
        """Each row as a tensor."""
        return iter(self.tensor)

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The objects of a list or tuple of this class, in order; AssertionError for anything else, or none."""
        if not isinstance(parts, (list, tuple)) or not parts or not all(isinstance(part, cls) for part in parts):
            raise AssertionError(f"A list of {cls.__name__} was expected, not {parts!r}.")
        return cls(torch.cat([part.tensor for part in parts]))  # type: ignore[call-arg]
