"""What was configured: the run against its recipe, the recipe against its base, and all against the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d2_ext.config import add_d2_ext_config
from d2_ext.engine import build_config
from d2_ext.errors import ConfigError
from d2_ext.files import read_yaml
from d2_ext.report.blocks import Block, Missing, MissingInput, Table, Text
from d2_ext.report.run_folder import RunFolder

import yaml
from detectron2.config import CfgNode, get_cfg

ABSENT = "(no such key)"


def run_config(run: RunFolder, *, datasets: bool = True) -> CfgNode:
    """The run's config for the CPU, frozen.

    Args:
        run: with a ``config.yaml``.
        datasets: keep ``DATASETS``; without, it does not matter whether they are registered here.

    Raises:
        MissingInput: if there is no usable file.
        ConfigError: if the model cannot be configured from it.
    """
    if not run.config:
        raise MissingInput(run.config_problem, run.train_command())
    args = argparse.Namespace(config_file=str(run.path / "config.yaml"), opts=["MODEL.DEVICE", "cpu"])
    return build_config(args, needs_data=datasets)


def configuration_blocks(run: RunFolder, recipe: Path | None) -> list[Block]:
    """Differences of the run's config.

    Args:
        run: with a ``config.yaml``.
        recipe: its config file; None takes the one that the log names.

    Raises:
        MissingInput: if the run has no config.
    """
    if not run.config:
        raise MissingInput(run.config_problem, run.train_command())
    own = dict(_leaves(run.config))
    blocks: list[Block] = []
    try:
        blocks += _recipe_blocks(own, _find_recipe(run, recipe))
    except MissingInput as missing:
        blocks.append(missing.block)
    except ConfigError as error:
        blocks.append(Missing(str(error)))
    rows = _difference(_defaults(), own)
    header = ["key", "default", "this run"]
    return [*blocks, Table(f"All {len(rows)} keys that differ from their defaults", header, rows, texts=3)]


def _recipe_blocks(own: Mapping[str, Any], recipe: Path) -> Iterator[Block]:
    ours = _full(recipe)
    rows = _difference(ours, own)
    if rows:
        yield Table(f"This run against its recipe {recipe}", ["key", "recipe", "this run"], rows, texts=3)
    else:
        yield Text(f"The run is its recipe {recipe}: no key was changed on the command line.")
    base = _base_of(recipe)
    if base is None:
        yield Text(f"{recipe.name} has no _BASE_; its keys are among those below.")
    else:
        rows = _difference(_full(base), ours)
        yield Table(f"The recipe against its base {base.name}", ["key", "base", "recipe"], rows, texts=3)


def _find_recipe(run: RunFolder, recipe: Path | None) -> Path:
    """The recipe, only if it is a local YAML file: its name may come from a log of anybody's."""
    if recipe is None and not run.recipe_name():
        raise MissingInput(
            "The log does not say which config file the run was started with. Name it with --config-file.",
            "python tools/report.py RUN_FOLDER --config-file configs/....yaml",
        )
    path = recipe or Path(run.recipe_name())
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise MissingInput(
            f"The run's config file {path} is not there (from {Path.cwd()}), so its changes cannot be told "
            "from the recipe's. Run this tool where the training was started, or name the file with --config-file.",
            "python tools/report.py RUN_FOLDER --config-file configs/....yaml",
        )
    return path


def _base_of(path: Path) -> Path | None:
    """The file's ``_BASE_``, if it names exactly one local file."""
    content = read_yaml(path)
    base = content.get("_BASE_") if isinstance(content, dict) else None
    if not isinstance(base, str) or "://" in base:
        return None
    base_path = path.parent / base
    return base_path if base_path.is_file() else None


def _full(path: Path) -> dict[str, Any]:
    """All keys of a file over the defaults. Its data sets need not be registered here."""
    cfg = _default_config()
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except Exception as error:  # of yacs and Detectron2, which assert and raise whatever comes first
        raise ConfigError(f"{path} does not fit the config keys of this version: {error}") from error
    return _dumped(cfg)


def _defaults() -> dict[str, Any]:
    return _dumped(_default_config())


def _default_config() -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    return cfg


def _dumped(cfg: CfgNode) -> dict[str, Any]:
    """As it would stand in a run folder, so that tuples and lists compare equal."""
    return dict(_leaves(yaml.safe_load(cfg.dump())))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[list[str]]:
    """Key, value before and value after, of all that differ."""
    keys = sorted({*before, *after})
    return [
        [key, _shown(before.get(key, ABSENT)), _shown(after.get(key, ABSENT))]
        for key in keys
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def _shown(value: Any) -> str:
    return '""' if value == "" else str(value)
