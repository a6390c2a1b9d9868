"""The config node, its files, and constructors and functions that take their arguments from a config."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

from detectron2.config._yaml import load_yaml
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _FvcoreNode
from yacs.config import CfgNode as _YacsNode

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]

logger = logging.getLogger(__name__)

VERSION = 2  # of the keys' names
_MAX_BASE_DEPTH = 50  # files, each based on the next
_MAX_BASES = 500  # files that one file is based on, directly or not


class CfgNode(_FvcoreNode):
    """A section of a config: a dict whose keys are attributes too, see ``yacs.config.CfgNode``.

    Files are read as :mod:`detectron2.config._yaml` does, so no tag of them runs code.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The keys of a YAML file over those of the files that it is based on.

        Its key ``_BASE_`` may name a file or a list of files, of which the last wins; relative paths start at the
        file's own folder, ``~`` is the home folder. ``allow_unsafe`` computes arithmetic under the tag
        ``!!python/object/apply:eval``.

        Raises:
            OSError, yaml.YAMLError: if a file cannot be read; see :func:`detectron2.config._yaml.load_yaml`.
            TypeError: for a file that holds no keys, and a ``_BASE_`` that is no path.
            ValueError: for a base on another machine, files that are based on each other, and too many of them.
            AssertionError: if a file has keys below one that is a plain value in its base.
        """
        return _Bases(filename, allow_unsafe).read(filename, ())

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Take over the keys of a file, see :meth:`load_yaml_with_base`, whose errors are raised too.

        Raises:
            AssertionError: if there is no such file, or it or this config has names of another ``VERSION``.
            KeyError: for an unknown key.
            ValueError: for a value of another type than the default's.
        """
        assert PathManager.isfile(cfg_filename), f"There is no config file {cfg_filename!r}."
        keys = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        if "VERSION" not in keys:
            logger.warning("%s names no VERSION; its keys are read as those of v%d.", cfg_filename, VERSION)
        for owner, version in ((cfg_filename, keys.get("VERSION", VERSION)), ("The config merged into", self.VERSION)):
            assert version == VERSION, f"{owner} has keys of v{version}; only v{VERSION} is known here. Convert them."
        self.merge_from_other_cfg(keys)


class _Bases:
    """Reads a file and the files that it is based on, within limits."""

    def __init__(self, start: str, allow_expressions: bool) -> None:
        self.start = start
        self.allow_expressions = allow_expressions
        self.count = 0

    def read(self, filename: str, trail: tuple[str, ...]) -> dict[str, Any]:
        """The keys of a file over those of its bases; ``trail``: absolute paths of the files based on it."""
        with PathManager.open(filename, "rb") as stream:
            own = load_yaml(stream, allow_expressions=self.allow_expressions)
        if not isinstance(own, dict):
            raise TypeError(f"{filename} holds a {type(own).__name__}; a config file consists of lines 'key: value'.")
        trail += (os.path.abspath(filename),)
        bases = own.pop(BASE_KEY, [])
        keys: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            keys = _overlay(keys, self.read(self.locate(base, filename, trail), trail), filename)
        return _overlay(keys, own, filename)

    def locate(self, base: Any, filename: str, trail: tuple[str, ...]) -> str:
        """The path of a base that a file names; refuses addresses, circles and chains without end."""
        if not isinstance(base, str):
            raise TypeError(f"{filename}: {BASE_KEY} is {base!r}; expected the path of a file, or a list of paths.")
        if "://" in base:
            raise ValueError(
                f"{filename}: {BASE_KEY} is {base!r}, on another machine, which is not read from within a file. "
                "Download it, look at it, and name your copy."
            )
        path = os.path.join(os.path.dirname(filename), os.path.expanduser(base))
        if os.path.abspath(path) in trail:
            raise ValueError(f"{filename}: {BASE_KEY} leads back to {path}, which is based on this file. Take one out.")
        self.count += 1
        if len(trail) > _MAX_BASE_DEPTH or self.count > _MAX_BASES:
            limit = f"{_MAX_BASE_DEPTH} files deep" if len(trail) > _MAX_BASE_DEPTH else f"{_MAX_BASES} files"
            raise ValueError(f"{self.start}: the files that it is based on ({BASE_KEY}) are more than {limit}.")
        return path


def _overlay(below: dict[str, Any], above: dict[str, Any], filename: str) -> dict[str, Any]:
    """Both mappings' keys; values of the second win, section by section. Neither is changed."""
    joined = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and key in below:
            assert isinstance(below[key], dict), (
                f"{filename}: {key} is a section here, but the plain value {below[key]!r} in the file below."
            )
            value = _overlay(below[key], value, filename)
        joined[key] = value
    return joined


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A new config with all keys at their defaults."""
    from detectron2.config.defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Fill :data:`global_cfg` with the keys of a config; it stays the same object, so it may be imported by name."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(
    init_func: Callable[..., None] | None = None, *, from_config: Callable[..., dict[str, Any]] | None = None
) -> Any:
    """Let a constructor or a function be called with a config as well as with its own arguments.

    A constructor takes the plain decorator, and its class a classmethod ``from_config(cls, cfg, ...)`` that returns
    the constructor's arguments. A function takes ``@configurable(from_config=function)``. A call whose first argument,
    or argument ``cfg``, is a config goes through ``from_config``. Of the other keywords, it gets those that it has
    parameters for (all, if it takes ``*args`` or ``**kwargs``); the rest go to the constructor and win.

    Raises:
        AssertionError: for another use of the decorator.
        AttributeError: when called, if the class has no ``from_config``.
        TypeError: when called, if that is no classmethod, or its first parameter is not called ``cfg``.
    """
    if init_func is None:
        assert inspect.isfunction(from_config), "configurable(from_config=...) needs a function."
        return functools.partial(_configurable_function, from_config)
    is_plain = inspect.isfunction(init_func) and init_func.__name__ == "__init__" and from_config is None
    assert is_plain, "Without from_config=..., @configurable goes above __init__ only, and without brackets."

    @functools.wraps(init_func)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        source = getattr(cls, "from_config", None)
        if source is None:
            raise AttributeError(f"{cls.__name__} has a configurable __init__, so it needs a classmethod from_config.")
        if not inspect.ismethod(source):
            raise TypeError(f"{cls.__name__}.from_config must be a classmethod.")
        args, kwargs = _arguments(source, args, kwargs)
        init_func(self, *args, **kwargs)

    return construct


def _configurable_function(from_config: Callable[..., dict[str, Any]], function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _arguments(from_config, args, kwargs)
        return function(*args, **kwargs)

    call.from_config = from_config
    return call


def _arguments(
    from_config: Callable[..., dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for the constructor or function: as given, or from the config among them."""
    if not isinstance(args[0] if args else kwargs.get("cfg"), _YacsNode):
        return args, kwargs
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"The first parameter of {from_config.__qualname__} must be called 'cfg'.")
    takes_all = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    for_config = {name: value for name, value in kwargs.items() if takes_all or name in parameters}
    explicit = {name: value for name, value in kwargs.items() if name not in for_config}
    return (), {**from_config(*args, **for_config), **explicit}
