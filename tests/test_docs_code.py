"""The code on the pages: Python blocks run, and commands are ones that the scripts understand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.scripts import ROOT, load_script

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "projects").rglob("*.md")])
FENCE = re.compile(
    r"(?P<mark><!-- not run: [^>]+ -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


def _blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Line and text of the blocks of some languages that are not marked ``<!-- not run: reason -->``."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match["language"] in languages and not match["mark"]:
            yield text.count("\n", 0, match.start("text")) + 1, match["text"]


def _commands(text: str) -> Iterator[list[str]]:
    """Words of each ``python script.py ...`` of a shell block; comments are dropped, ``&&`` separates."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "python " in line else []
        while "python" in words:
            words = words[words.index("python") + 1 :]
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", ">")), len(words))
            if words and words[0].endswith(".py") and "..." not in words:
                yield words[:end]


WITH_PYTHON = [page for page in PAGES if any(_blocks(page, "python"))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_on_a_page_runs_from_top_to_bottom(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {"__name__": "page"}
    for line, text in _blocks(page, "python"):
        exec(compile("\n" * line + text, str(page), "exec"), namespace)  # the page's own code, nothing from outside


COMMANDS = sorted(
    {
        (str(page.relative_to(ROOT)), tuple(words))
        for page in PAGES
        for _, text in _blocks(page, "bash", "")
        for words in _commands(text)
    }
)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:80])
def test_a_command_on_a_page_is_understood_by_its_script(page: str, words: tuple[str, ...]) -> None:
    script, *arguments = words
    assert (ROOT / script).is_file(), f"{page} names {script}"
    parser = load_script(script).argument_parser()
    if "--help" in arguments:
        with pytest.raises(SystemExit) as leaving:
            parser.parse_args(arguments)
        assert leaving.value.code == 0
    else:
        parser.parse_args(arguments)


SCRIPTS = ["train_net.py", *(f"tools/{path.name}" for path in sorted((ROOT / "tools").glob("*.py")))]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_ends_with_examples_that_the_script_understands(script: str) -> None:
    parser = load_script(script).argument_parser()
    assert parser.epilog.startswith("examples:\n")
    commands = list(_commands(parser.epilog))
    assert commands
    for name, *arguments in commands:
        assert name == script
        parser.parse_args(arguments)
