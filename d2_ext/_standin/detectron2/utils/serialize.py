"""Functions that the standard pickle refuses, made fit for worker processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Acts as the object in it and can be pickled, where cloudpickle can do that; it comes back as that object."""

    def __init__(self, obj: Any) -> None:
        self._wrapped = obj._wrapped if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (cloudpickle.dumps(self._wrapped),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object."""
        return self._wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_wrapped":  # not set yet, while being copied
            raise AttributeError(name)
        return getattr(self._wrapped, name)
