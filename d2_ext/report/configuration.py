"""What was configured: the run against its recipe, the recipe against its base, and all against the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2_ext.config.load import leaves, load_config, merge_config
from d2_ext.errors import ConfigError
from d2_ext.files import read_yaml
from d2_ext.report.blocks import Block, Missing, MissingInput, Table, Text
from d2_ext.report.run_folder import RunFolder
from d2_ext.runs.config import load_run_config

import yaml
from detectron2.config import CfgNode

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
    load = load_run_config if datasets else load_config
    return load(run.path / "config.yaml", ["MODEL.DEVICE", "cpu"])


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
    own = dict(leaves(run.config))
    blocks: list[Block] = []
    try:
        path = recipe or _named_recipe(run)
        ours = _full(path)
        rows = _difference(ours, own)
        if rows:
            blocks.append(Table(f"This run against its recipe {path}", ["key", "recipe", "this run"], rows, texts=3))
        else:
            blocks.append(Text(f"The run is its recipe {path}: no key was changed on the command line."))
        base = read_yaml(path).get("_BASE_", "")
        if base and "://" not in base:
            rows = _difference(_full(path.parent / base), ours)
            name = Path(base).name
            blocks.append(Table(f"The recipe against its base {name}", ["key", "base", "recipe"], rows, texts=3))
        else:
            blocks.append(Text(f"{path.name} has no _BASE_; its keys are among those below."))
    except MissingInput as missing:
        blocks.append(missing.block)
    except ConfigError as error:
        blocks.append(Missing(str(error)))
    rows = _difference(_full(""), own)
    header = ["key", "default", "this run"]
    return [*blocks, Table(f"All {len(rows)} keys that differ from their defaults", header, rows, texts=3)]


def _named_recipe(run: RunFolder) -> Path:
    """The recipe that the log names, only if it is a local YAML file: a log may come from anywhere."""
    command = "d2_ext report RUN_FOLDER --config-file RECIPE.yaml"
    if not run.recipe_name():
        raise MissingInput(
            "The log does not say which config file the run was started with. Name it with --config-file.", command
        )
    path = Path(run.recipe_name())
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise MissingInput(
            f"The run's config file {path} is not there (from {Path.cwd()}), so its changes cannot be told "
            "from the recipe's. Run this tool where the training was started, or name the file with --config-file.",
            command,
        )
    return path


def _full(path: Path | str) -> dict[str, Any]:
    """All keys of a file over the defaults, as they would stand in a run folder, so that tuples and lists are equal."""
    return dict(leaves(yaml.safe_load(merge_config(path).dump())))


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[list[str]]:
    """Key, value before and value after, of all that differ."""
    rows = [(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in sorted({*before, *after})]
    return [[key, *('""' if v == "" else str(v) for v in values)] for key, *values in rows if values[0] != values[1]]
