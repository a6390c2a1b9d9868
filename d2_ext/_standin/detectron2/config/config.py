"""Config nodes and the decorator that lets a constructor take one.

Checked against Detectron2 main of 2026-06. Differs: files are always read by a safe YAML loader (``_yaml.py``).
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from detectron2.config._yaml import load_yaml
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _FvcoreNode

logger = logging.getLogger(__name__)


class CfgNode(_FvcoreNode):
    """Nested dict with attributes; freezable; merges YAML files, lists of ``key, value`` and other nodes."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        return PathManager.open(filename, "r")

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Read a YAML file and, first, the files that it names under ``_BASE_``.

        Args:
            filename: path or URL of the file. ``_BASE_`` is a path or a list of paths, relative to this file, absolute,
                or with ``~``; later ones win over earlier ones, and the file's own values over all.
            allow_unsafe: evaluate arithmetic under the tag ``!!python/object/apply:eval``. Code is never run.

        Raises:
            yaml.constructor.ConstructorError: for any other Python tag.
            TypeError: if the file holds something else than a mapping.
        """
        with cls._open_cfg(filename) as f:
            own = load_yaml(f, allow_expressions=allow_unsafe)
        if not isinstance(own, dict):
            raise TypeError(f"Config file {filename!r} must hold 'key: value' pairs, not {type(own).__name__}.")
        bases = own.pop(BASE_KEY, [])
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            _overlay(merged, cls.load_yaml_with_base(_resolve(base, filename), allow_unsafe=allow_unsafe))
        _overlay(merged, own)
        return merged

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file, of this version of the keys or an older one.

        Args:
            cfg_filename: path or URL.
            allow_unsafe: see ``load_yaml_with_base``.

        Raises:
            AssertionError: if there is no such file, or its ``VERSION`` is newer than this node's.
            KeyError: for a key that does not exist.
            ValueError: for a value of another type.
        """
        from detectron2.config import compat  # builds on this module
        from detectron2.config.defaults import _C

        assert PathManager.isfile(cfg_filename), f"There is no config file '{cfg_filename}'."
        assert self.VERSION == _C.VERSION, f"Only a config of version {_C.VERSION} can merge files, not {self.VERSION}."
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        version = loaded.get("VERSION")
        if version is None:
            version = compat.guess_version(loaded, cfg_filename)
        assert version <= self.VERSION, f"{cfg_filename}: cannot merge a v{version} config into a v{self.VERSION} one."
        if version == self.VERSION:
            self.merge_from_other_cfg(loaded)
            return
        logger.warning(
            "Config '%s' is of the old version %s; converting it to %s.", cfg_filename, version, self.VERSION
        )
        # The file is partial, so it is merged into a full config of its own version, and that one is converted.
        old = compat.downgrade_config(self, to_version=version)
        old.merge_from_other_cfg(loaded)
        new = compat.upgrade_config(old)
        self.clear()
        self.update(new)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A copy of the default config."""
    from detectron2.config.defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Replace the content of ``global_cfg``, which stays the same object, so importing it by name keeps working."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(
    init_func: Callable[..., None] | None = None, *, from_config: Callable[..., dict] | None = None
) -> Any:
    """Let a constructor, or a function, be called with a config instead of its arguments.

    On ``__init__``: the class has a classmethod ``from_config(cls, cfg, ...)`` that returns the arguments. On another
    function: ``@configurable(from_config=function_of_cfg)``. Arguments that ``from_config`` does not take are passed by
    keyword and override its result.

    Example:
        >>> class Scale:
        ...     @configurable
        ...     def __init__(self, factor, offset=0):
        ...         self.factor, self.offset = factor, offset
        ...
        ...     @classmethod
        ...     def from_config(cls, cfg):
        ...         return {"factor": cfg.FACTOR}
        >>> Scale(CfgNode({"FACTOR": 3}), offset=1).factor
        3

    Raises:
        AttributeError, TypeError: on use, if ``from_config`` is missing, is no classmethod, or has not ``cfg`` first.
    """
    if init_func is not None:
        valid = inspect.isfunction(init_func) and init_func.__name__ == "__init__" and from_config is None
        assert valid, "Use @configurable on __init__, or @configurable(from_config=...) on another function."
        return _configurable_init(init_func)
    if from_config is None:
        return configurable
    assert inspect.isfunction(from_config), "from_config must be a function."
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init_func: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_func)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        convert = getattr(type(self), "from_config", None)
        if convert is None:
            raise AttributeError(
                f"{type(self).__name__} uses @configurable, so it must have a classmethod 'from_config'."
            )
        if not inspect.ismethod(convert):
            raise TypeError(f"'from_config' of {type(self).__name__} must be a classmethod.")
        if _has_cfg(args, kwargs):
            init_func(self, **_explicit_arguments(convert, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return init


def _configurable_function(func: Callable[..., Any], *, from_config: Callable[..., dict]) -> Callable[..., Any]:
    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _has_cfg(args, kwargs):
            return func(**_explicit_arguments(from_config, args, kwargs))
        return func(*args, **kwargs)

    call.from_config = from_config
    return call


def _has_cfg(args: tuple, kwargs: dict[str, Any]) -> bool:
    kinds: tuple[type, ...] = (_FvcoreNode,)
    if "omegaconf" in sys.modules:  # if nobody imported it, nobody can hold one of its configs
        kinds += (sys.modules["omegaconf"].DictConfig,)
    return (bool(args) and isinstance(args[0], kinds)) or isinstance(kwargs.get("cfg"), kinds)


def _explicit_arguments(convert: Callable[..., dict], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(convert).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{convert.__qualname__} must take 'cfg' as its first argument.")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return convert(*args, **kwargs)
    known = {k: v for k, v in kwargs.items() if k in parameters}
    explicit = convert(*args, **known)
    explicit.update((k, v) for k, v in kwargs.items() if k not in parameters)
    return explicit


def _resolve(base: str, filename: str) -> str:
    """Path of a base file, which is meant relative to the file that names it."""
    base = os.path.expanduser(base)
    if os.path.isabs(base) or "://" in base:
        return base
    return os.path.join(os.path.dirname(filename), base)


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Write ``above`` over ``below``, in place; mappings are merged, everything else is replaced."""
    for key, value in above.items():
        if isinstance(value, dict) and key in below:
            assert isinstance(below[key], dict), f"Key '{key}' is a value in the base config, but has sub-keys here."
            _overlay(below[key], value)
        else:
            below[key] = value
