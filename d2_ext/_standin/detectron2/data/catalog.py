"""Names of data sets: how to load their records, and what is known about them."""

from __future__ import annotations

import builtins
import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any, ClassVar

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "MetadataCatalog", "Metadata"]


class _Catalog(UserDict):
    """A dict with the verbs that both catalogs share."""

    def list(self) -> builtins.list[str]:
        """Names, in the order of registration."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget ``name``; a KeyError if it is unknown."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({', '.join(self.keys())})"

    __str__ = __repr__


class _DatasetCatalog(_Catalog):
    """Maps a data set's name to the function that loads its records.

    Example:
        >>> DatasetCatalog.register("toy_doc", lambda: [{"file_name": "a.png"}])
        >>> DatasetCatalog.get("toy_doc")
        [{'file_name': 'a.png'}]
        >>> DatasetCatalog.remove("toy_doc")
    """

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Store ``func`` under a new name; it takes no arguments and gives the same list of dicts at each call."""
        assert callable(func), f"data set '{name}': expected a function that loads the records, got {type(func)}"
        assert name not in self, f"data set '{name}' is registered already; remove it first or choose another name"
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]
        """Call the function of ``name`` (each time anew) and return its records.

        Raises:
            KeyError: the name is not registered; the message lists those that are.
        """
        if name not in self:
            raise KeyError(f"data set '{name}' is not registered; registered are: {', '.join(self.keys())}")
        return self[name]()


class Metadata(types.SimpleNamespace):
    """Facts about one data set (class names, files, id maps) that may be set once and never changed.

    Example:
        >>> Metadata(name="toy").set(thing_classes=["ship"]).get("thing_colors", "none")
        'none'
    """

    name: str = "N/A"

    _RENAMED: ClassVar[dict[str, str]] = {
        "class_names": "thing_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
        "stuff_class_names": "stuff_classes",
    }

    def _current(self, key: str) -> str:
        """Today's name of an attribute, with a warning if ``key`` is an old one."""
        if key not in self._RENAMED:
            return key
        log_first_n(logging.WARNING, f"Metadata '{key}' is now called '{self._RENAMED[key]}'.", n=10)
        return self._RENAMED[key]

    def __getattr__(self, key: str) -> Any:
        # Runs only if the ordinary look-up has failed.
        if key in type(self)._RENAMED:
            return getattr(self, self._current(key))
        known = ", ".join(k for k in self.__dict__ if k != "name") or "nothing: the metadata is empty"
        raise AttributeError(f"the metadata of data set '{self.name}' has no '{key}'; it has {known}")

    def __setattr__(self, key: str, val: Any) -> None:
        key = self._current(key)
        if hasattr(self, key):
            old = getattr(self, key)
            assert old == val, f"metadata '{key}' of data set '{self.name}' is fixed already: {old} != {val}"
        else:
            super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """All attributes as a new dict."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes and return the object itself."""
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute ``key``, or ``default`` if it was never set."""
        return getattr(self, key, default)


class _MetadataCatalog(_Catalog):
    """Maps a data set's name to its one :class:`Metadata` object, which lives as long as the process."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of ``name``, made empty at the first call."""
        assert name, "the name of a data set must not be empty"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
