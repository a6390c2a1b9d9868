"""Peak memory of tensors, measured in the same way on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Context that records the largest total size of the storages made inside it that were alive at one time.

    Memory that an operator uses internally is not seen; tensors kept for a backward pass are.

    Attributes:
        peak: bytes.

    Example:
        >>> with PeakMemory() as memory:
        ...     x = torch.ones(1000)  # 4000 bytes
        ...     x = x + 1  # a second tensor, while the first is alive
        >>> memory.peak
        8000
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {id_ for id_ in map(_storage_id, tree_leaves((args, kwargs))) if id_ is not None}
        outputs = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(outputs):
            key = _storage_id(tensor)
            if key is not None and key not in self._alive and key not in before:  # views and in-place results are old
                storage = tensor.untyped_storage()
                self._alive[key] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return outputs


def _storage_id(value: object) -> int | None:
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
