"""Write ``docs/config.md``: every config key of d2_ext with its default and its comment, from ``d2_ext/config``."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import d2_ext
from d2_ext.cli.command import command_parser

from detectron2.config import CfgNode, get_cfg

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "config.md"
FOLDER = Path(inspect.getfile(d2_ext)).parent / "config"

HEAD = """# Config reference

Every key that `d2_ext.add_d2_ext_config(cfg)` adds to Detectron2's, with its default. Detectron2's own keys are
described in [its documentation](https://detectron2.readthedocs.io/en/latest/modules/config.html);
`python train_net.py ... KEY VALUE` changes either on the command line, and an unknown key is an error that names the
nearest known one.

This page is made from the comments in `d2_ext/config` by `python dev/make_config_reference.py`.
"""
EPILOG = """examples:
  write docs/config.md:
    python dev/make_config_reference.py
  only say whether it is current (exit code 1 if not):
    python dev/make_config_reference.py --check
"""


def argument_parser() -> argparse.ArgumentParser:
    """Command line of this tool."""
    parser = command_parser(__doc__, EPILOG)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make or check the page; returns the exit code."""
    args = argument_parser().parse_args(argv)
    page = config_page()
    if args.check:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == page
        print(f"{TARGET.relative_to(ROOT)} is {'current' if current else 'out of date: run ' + sys.argv[0]}")
        return 0 if current else 1
    TARGET.write_text(page, encoding="utf-8")
    print(f"written: {TARGET.relative_to(ROOT)}")
    return 0


def config_page() -> str:
    """The page as Markdown: a table for each node of the config."""
    places: dict[tuple[int, str], tuple[Path, int]] = {}
    cfg, known = get_cfg(), {key for key, _, _ in _leaves(get_cfg())}
    with _recorded(places):
        d2_ext.add_d2_ext_config(cfg)
    tables: dict[str, list[str]] = {}
    for key, node, value in _leaves(cfg):
        if key not in known:
            prefix, name = key.rpartition(".")[::2]
            comment = _comment(places[id(node), name], prefix.rpartition(".")[2], name)
            tables.setdefault(prefix, []).append(f"| `{name}` | `{value!r}` | {comment} |")
    parts = [
        f"## {prefix}\n\n| key | default | meaning |\n|---|---|---|\n" + "\n".join(t) for prefix, t in tables.items()
    ]
    return HEAD + "\n" + "\n\n".join(parts) + "\n"


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, CfgNode, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, node, value


def _recorded(places: dict[tuple[int, str], tuple[Path, int]]) -> Any:
    """Note the source line, from 1, of our config folder that sets each key meanwhile."""
    set_item = CfgNode.__setitem__

    def noting(node: CfgNode, name: str, value: Any) -> None:
        frame = inspect.currentframe()
        while frame is not None and Path(frame.f_code.co_filename).parent != FOLDER:
            frame = frame.f_back
        if frame is not None and not isinstance(value, CfgNode):
            places.setdefault((id(node), name), (Path(frame.f_code.co_filename), frame.f_lineno))
        set_item(node, name, value)

    return mock.patch.object(CfgNode, "__setitem__", noting)


def _comment(place: tuple[Path, int], section: str, name: str) -> str:
    """The comment above or behind the line that sets a key, or that has it in the table of its section."""
    path, line = place
    lines = path.read_text(encoding="utf-8").splitlines()
    if "[key] = " in lines[line - 1]:
        table = next(i for i, text in enumerate(lines) if text.startswith(f"    {section.lower()}: dict"))
        line = 1 + next(i for i, text in enumerate(lines) if i > table and f'"{name}":' in text)
    above: list[str] = []
    for text in reversed(lines[: line - 1]):
        if not text.strip().startswith("#"):
            break
        above.insert(0, text.strip().lstrip("# "))
    behind = lines[line - 1].partition("  # ")[2]
    words = " ".join([*above, behind]).strip()
    if not words:
        raise ValueError(f"{path}:{line}: this config key has no comment")
    return words.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
