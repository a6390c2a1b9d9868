"""Which data sets there are, and what is known about each of them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _ByName(UserDict):
    """What both catalogs can do."""

    def list(self) -> list[str]:
        """All names, in the order of registration."""
        return [*self.data]

    def remove(self, name: str) -> None:
        """Forget a name; KeyError if there is nothing of that name."""
        del self.data[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.data)})"


class _LoaderCatalog(_ByName):
    """Functions that load a data set, by the name of the data set."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Name a function that returns the records of a data set; AssertionError if the name is taken."""
        assert callable(func), f"Data set {name!r} needs a function that loads it, got {type(func).__name__}."
        assert name not in self.data, f"A data set {name!r} exists. Choose another name, or remove that one first."
        self.data[name] = func

    def get(self, name: str) -> Any:
        """Load a data set, anew at each call; KeyError, with the known names, for an unknown one."""
        if name not in self.data:
            raise KeyError(f"No data set is called {name!r}. Registered are: {', '.join(self.data)}")
        return self.data[name]()


class Metadata(SimpleNamespace):
    """Facts about a data set as attributes, such as ``thing_classes`` or ``json_file``.

    An attribute is set once; the same value may be set again, another one raises AssertionError.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(f"Data set {self.name!r} has no metadata {key!r}, only: {', '.join(vars(self))}.")

    def __setattr__(self, key: str, val: Any) -> None:
        held = getattr(self, key, val)
        assert held is val or held == val, f"Metadata {key!r} of {self.name!r} is {held!r} and cannot become {val!r}."
        super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a new dict."""
        return dict(vars(self))

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes; returns the object itself."""
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or ``default`` where there is none."""
        return getattr(self, key, default)


class _MetadataByName(_ByName):
    """The one :class:`Metadata` object of each name."""

    def get(self, name: str) -> Metadata:
        """The metadata of a data set, made at the first call."""
        assert name, "The name of a data set cannot be empty."
        return self.data.setdefault(name, Metadata(name=name))


DatasetCatalog = _LoaderCatalog()
MetadataCatalog = _MetadataByName()
