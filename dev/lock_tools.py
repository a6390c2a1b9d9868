"""Write ``requirements/ci.txt``: the versions of CI's tools and of all that they bring, as constraints for pip.

pip resolves them from the package index that it is configured for; nothing is installed, and no address is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.cli.command import command_parser

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

sys.path.append(str(Path(__file__).parent))
from check_dependencies import requirements

EXAMPLES = """examples:
  resolve anew, after a change of the extras "test" or "release":
    python dev/lock_tools.py
  only say whether every tool has a line, and none contradicts setup.py (exit code 1 if not):
    python dev/lock_tools.py --check
"""
TARGET = Path(__file__).resolve().parents[1] / "requirements" / "ci.txt"
# Of the extras "test" and "release". What tests are about (ONNX, Gradio, ...) is not locked, nor what the library
# needs: CI shall meet their newest versions.
TOOLS = (
    *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "packaging", "selenium", "nbclient"),
    *("nbformat", "ipykernel", "mkdocs-material", "mkdocstrings", "twine"),
)
OLDEST = "3.10"  # Python of setup.py
HEAD = """# Versions of CI's tools, for `pip install -c`. Written by `python dev/lock_tools.py`.
# A marker stands where a version needs a newer Python than the project.
"""


def tools() -> list[str]:
    """Requirements of the tools, with the versions that ``setup.py`` asks for."""
    wanted = requirements()
    return [str(entry) for extra in ("test", "release") for entry in wanted[extra] if entry.name in TOOLS]


def lines(report: Mapping[str, Any], skip: Iterable[str] = ()) -> list[str]:
    """A constraint for each package of a report of ``pip install --dry-run --report``.

    Args:
        report: its content.
        skip: names that get none.
    """
    skipped = {canonicalize_name(name) for name in skip}
    found = {}
    for item in report["install"]:
        meta = item["metadata"]
        name = canonicalize_name(meta["name"])
        floor = next((s.version for s in SpecifierSet(meta.get("requires_python") or "") if s.operator == ">="), OLDEST)
        newer = [int(part) for part in floor.split(".")[:2]] > [int(part) for part in OLDEST.split(".")]
        marker = f' ; python_full_version >= "{floor}"' if newer else ""
        found[name] = f"{name}=={meta['version']}{marker}"
    return [found[name] for name in sorted(found) if name not in skipped]


def problems(text: str) -> list[str]:
    """Tools without a line, and lines that contradict ``setup.py``."""
    locked = dict(line.split(" ;")[0].split("==") for line in text.splitlines() if line and not line.startswith("#"))
    wanted = requirements()
    entries = [entry for extra in ("test", "release") for entry in wanted[extra] if entry.name in TOOLS]
    missing = [f"{e.name} has no line" for e in entries if canonicalize_name(e.name) not in locked]
    return missing + [
        f"{entry.name} {locked[canonicalize_name(entry.name)]} is not {entry.specifier} of setup.py"
        for entry in entries
        if canonicalize_name(entry.name) in locked
        and not entry.specifier.contains(locked[canonicalize_name(entry.name)])
    ]


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the file is out of date")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the file; returns the exit code."""
    args = argument_parser().parse_args(argv)
    if not args.check:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--report",
            "-",
        ]
        done = subprocess.run([*command, *tools()], check=True, stdout=subprocess.PIPE, text=True)
        library = [entry.name for entry in requirements()[""]]
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(HEAD + "".join(f"{line}\n" for line in lines(json.loads(done.stdout), library)))
        print(f"written: {TARGET}")
    found = problems(TARGET.read_text(encoding="utf-8"))
    for problem in found:
        print(f"error: {TARGET.name}: {problem}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
