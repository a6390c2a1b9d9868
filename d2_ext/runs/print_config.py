"""``--print-config``: the whole config of a run as YAML, with a comment where it is not the default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.config import CfgNode

__all__ = ["config_text"]


def config_text(cfg: CfgNode, of_file: CfgNode, defaults: CfgNode) -> str:
    """Every key on a line, those that were changed with where and what was there before.

    Args:
        cfg: of the run.
        of_file: defaults and config file alone, before the command line.
        defaults: without either.

    Returns:
        YAML that ``--config-file`` takes.
    """
    now, in_file, default = (yaml.safe_load(node.dump()) for node in (cfg, of_file, defaults))
    return "".join(_lines(now, in_file, default, depth=0))


def _lines(node: dict[str, Any], of_file: dict[str, Any], defaults: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key in sorted(node):
        value, in_file, default = node[key], of_file.get(key), defaults.get(key)
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:\n"
            yield from _lines(value, in_file or {}, default or {}, depth + 1)
        else:
            comment = ""
            if value != in_file:
                comment = f"  # command line, was {_on_a_line(in_file)}"
            elif value != default:
                comment = f"  # config file, was {_on_a_line(default)}"
            yield f"{indent}{key}: {_on_a_line(value)}{comment}\n"


def _on_a_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
