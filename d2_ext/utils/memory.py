"""Peak memory: of the tensors of a piece of code in the same way on every device, and of a whole process."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes() -> int:
    """The largest memory so far: of torch's tensors on the GPU, or without one the resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


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
