"""Write docs/bad_input.md from the table of bad input: ``python tests/faults/write_page.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from faults.case import Case  # noqa: E402
from faults.checkpoint_cases import CHECKPOINT_CASES  # noqa: E402
from faults.command_cases import COMMAND_CASES  # noqa: E402
from faults.config_cases import CONFIG_CASES  # noqa: E402
from faults.data_cases import IMAGE_CASES, JSON_CASES, TEXT_CASES  # noqa: E402
from faults.tool_cases import TOOL_CASES  # noqa: E402

from helpers.scripts import ROOT  # noqa: E402

PAGE = ROOT / "docs" / "bad_input.md"
GROUPS: dict[str, list[Case]] = {
    "Configs": CONFIG_CASES,
    "COCO annotations": JSON_CASES,
    "Annotations in text files": TEXT_CASES,
    "Images": IMAGE_CASES,
    "Checkpoints": CHECKPOINT_CASES,
    "Command lines": [*COMMAND_CASES, *TOOL_CASES],
}
INTRODUCTION = """# Bad input

What happens when a config, a data set, a checkpoint or a command line is wrong. Each row is a test
(`tests/faults/test_bad_input.py`): the program ends with one message that holds the words of the third column, with the
exit code of the fourth (1: data or weights, 2: wrong usage), without a traceback, before the run folder exists. Code 0
marks unusual input that is accepted. Nothing of these files is ever executed, see [Reliability](reliability.md).

This page is written by `python tests/faults/write_page.py`; do not edit it.

| group | cases |
|---|---|
"""


def page() -> str:
    """The whole page."""
    counts = "".join(f"| {title} | {len(cases)} |\n" for title, cases in GROUPS.items())
    total = sum(len(cases) for cases in GROUPS.values())
    parts = [f"{INTRODUCTION}{counts}| together | {total} |\n"]
    parts += [_table(title, cases) for title, cases in GROUPS.items()]
    return "\n".join(parts)


def _table(title: str, cases: Sequence[Case]) -> str:
    rows = [f"| {_cell(c.what)} | {_code(c.where)} | {' '.join(map(_code, c.says))} | {c.code} |" for c in cases]
    return "\n".join(
        [f"## {title}", "", "| what is wrong | where | in the message | code |", "|---|---|---|---|", *rows, ""]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def main() -> int:
    """Write the page; returns the exit code."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
