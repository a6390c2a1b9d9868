"""From a YAML file and ``KEY VALUE`` pairs to a checked, frozen config."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.config import add_d2_ext_config
from d2_ext.config.checks import check_config
from d2_ext.config.recipes import find_recipe
from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.files import read_yaml

import torch
from detectron2.config import CfgNode, get_cfg

__all__ = ["leaves", "load_config", "merge_config"]

MAX_BASES = 50  # files, each based on the next

_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?:.*\.)?(.*?)'> vs\. <class '(?:.*\.)?(.*?)'>\) with values \(.* vs\. (.*)\) "
    r"for config key: (.*)",
    re.DOTALL,
)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, prepare: Callable[[CfgNode], object] | None = None
) -> CfgNode:
    """Load a config; its data sets need not be there.

    For a run, whose data sets must be, see :func:`d2_ext.runs.config.load_run_config`.

    Args:
        path: of a YAML file, or the name of a recipe such as ``VisDrone/fcos_R50_FPN.yaml``; the defaults alone if
            empty.
        overrides: keys and values in turn, such as ``["SOLVER.BASE_LR", "0.01"]``.
        prepare: gets the checked config before it is frozen, and may change it.

    Returns:
        The config, frozen. ``MODEL.DEVICE`` is "cpu" where "cuda" cannot be used.

    Raises:
        ConfigError: for a missing or malformed file, an unknown key, a value of the wrong type or out of its range, or
            an unknown model or backbone.
    """
    cfg = merge_config(path, overrides)
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logging.getLogger("d2_ext").warning("MODEL.DEVICE is 'cuda', but no GPU is usable here: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    check_config(cfg)
    if prepare is not None:
        prepare(cfg)
    cfg.freeze()
    return cfg


def merge_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The defaults with a file and overrides merged, not checked, not frozen; arguments as of :func:`load_config`."""
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    if str(path):
        _merge_file(cfg, find_recipe(str(path)))
    flag = next((word for word in overrides if word.startswith("--")), "")
    if flag:
        raise ConfigError(f"{flag} comes behind the first KEY VALUE, where flags are not read. Put it before them.")
    if len(overrides) % 2:
        raise ConfigError(
            f"Options come as pairs of KEY VALUE, but {len(overrides)} words were given: {' '.join(overrides)}. "
            "Write for example: SOLVER.BASE_LR 0.01 (flags such as --resume go before them)."
        )
    known = {key for key, _ in leaves(cfg)}
    for key in overrides[::2]:
        if key not in known:
            raise ConfigError(_unknown_key(cfg, key))
    try:
        cfg.merge_from_list(list(overrides))
    except Exception as error:  # literals that Python's parser refuses raise more than ValueError
        raise ConfigError(f"Command line: {_mismatch(error)}") from error
    return cfg


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a config or its dictionary that is not a section."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    path = Path(config_file)
    if "://" in config_file:
        raise ConfigError(f"--config-file {config_file} lies elsewhere. Download it, read it, and give its path.")
    if not path.is_file():
        folder = path.parent
        near = did_you_mean(path.name, [p.name for p in folder.glob("*.yaml")]) if folder.is_dir() else ""
        where = "" if folder.is_dir() else f" (there is no folder {folder.resolve()})"
        raise ConfigError(f"--config-file: no file {path.resolve()}{where}. {near}".rstrip())
    _check_yaml(path, ())
    try:
        # Strictly safe YAML: a tag that would run Python is an error, with either Detectron2.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except KeyError as error:
        raise ConfigError(f"{path}: {_unknown_key(cfg, str(error.args[0]))}") from error
    except MemoryError as error:
        raise ConfigError(f"{path} cannot be read: memory ran out. Free some.") from error
    except Exception as error:  # of yacs and Detectron2, which assert and raise whatever comes first
        raise ConfigError(f"{path}: {_mismatch(error)}") from error


def _check_yaml(path: Path, below: tuple[Path, ...]) -> None:
    """Check that a file and the files that it is based on hold keys, before Detectron2 merges them.

    Args:
        path: of the file.
        below: the files that are based on it.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ConfigError(f"{path} {found}; expected keys and values, such as 'SOLVER: {{MAX_ITER: 1000}}'.")
    if "_BASE_" not in content:
        return
    base = content["_BASE_"]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: _BASE_ is {base!r}; expected the path of one file.")
    if "://" in base:
        raise ConfigError(f"{path}: _BASE_ is {base!r}, which lies elsewhere. Download it, read it, and name its path.")
    if len(below) >= MAX_BASES:
        raise ConfigError(f"{path}: _BASE_ is {base!r}, below {MAX_BASES} files based on each other. Join some.")
    base_path = path.parent / Path(base).expanduser()
    if not base_path.is_file():
        raise ConfigError(f"{path}: _BASE_ is {base!r}, but there is no file {base_path.resolve()}.")
    if base_path.resolve() in {p.resolve() for p in (path, *below)}:
        raise ConfigError(f"{path}: _BASE_ is {base!r}: these files are based on each other. Take one line out.")
    _check_yaml(base_path, (path, *below))


def _mismatch(error: Exception) -> str:
    """The message of an error, without the whole section that yacs prints where a section was expected."""
    found = _TYPE_MISMATCH.match(str(error))
    if found is None:
        return str(error).partition("\n")[0]
    old, new, value, key = found.groups()
    return f"Type mismatch for config key {key}: {value} is a {new}, expected a {old}."


def _unknown_key(cfg: CfgNode, text: str) -> str:
    key = text.removeprefix("Non-existent config key: ")
    return f"unknown config key {key!r}. {did_you_mean(key, [key for key, _ in leaves(cfg)])}".rstrip()
