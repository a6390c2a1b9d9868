"""Making closures and other locals picklable, for the workers of a data loader."""

from __future__ import annotations

from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wraps an object, behaves like it, and is pickled by cloudpickle; unpickling gives back the bare object.

    Wrapping a wrapper keeps one layer only.
    """

    def __init__(self, obj: Any) -> None:
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # asked for before __init__ ran (copy, unpickling): there is nothing to forward to
            raise AttributeError(name)
        return getattr(self._obj, name)
