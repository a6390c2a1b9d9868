"""Registries, and looking up an object by its dotted name."""

from __future__ import annotations

import importlib
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """Return the object called ``module.qualname``; the longest prefix that imports is taken as the module.

    A single word is looked up among the builtins after the modules.

    Raises:
        ImportError: if no such module or attribute exists. A module that exists but fails while it is imported
            raises its own error.
    """
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        module = _import_if_exists(".".join(parts[:size]))
        if module is None:
            continue
        try:
            return _walk(module, parts[size:])
        except AttributeError:
            continue  # e.g. torch.optim.sgd is first found as a module, then as an attribute of another one
    try:
        return _walk(importlib.import_module("builtins"), parts)
    except AttributeError:
        raise ImportError(f"Cannot dynamically locate object {name}!") from None


def _import_if_exists(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            return None
        raise


def _walk(obj: Any, names: list[str]) -> Any:
    for part in names:
        obj = getattr(obj, part)
    return obj


def _convert_target_to_string(t: Any) -> str:
    """Inverse of :func:`locate`: the shortest dotted name under which ``t`` can be found."""
    modules = t.__module__.split(".")
    for size in range(1, len(modules)):
        candidate = ".".join([*modules[:size], t.__qualname__])
        try:
            if locate(candidate) is t:
                return candidate
        except ImportError:
            continue
    return f"{t.__module__}.{t.__qualname__}"
