"""What users ask most is answered within two clicks of the README: a reader follows its links."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from helpers.scripts import ROOT

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
# Question -> page, and the heading or the words that begin its answer there.
ANSWERS = {
    "validation loss": ("docs/training.md", "## Validation loss: does it learn by heart?"),
    "class imbalance": ("docs/training.md", "## Rare classes"),
    "advice from the data": ("docs/your_data.md", "## Settings that suit the data"),
    "tracking and counting": ("docs/predict.md", "## Track and count"),
    "rotated boxes": ("docs/your_data.md", "## Rotated boxes"),
    "TensorRT": ("docs/deploy.md", "## TensorRT"),
    "C++": ("docs/deploy.md", "## C++"),
    "web": ("docs/deploy.md", "## Browsers"),
    "mobile": ("docs/deploy.md", "## Phones"),
    "Windows, macOS": ("docs/platforms.md", "# Linux, Windows, macOS, Apple GPUs"),
    "MPS": ("docs/platforms.md", "## Apple GPUs (MPS)"),
    "learning rate and batch size": ("docs/training.md", "## Which learning rate?"),
    "several seeds": ("docs/training.md", "## Several seeds"),
    "torchrun and SLURM": ("docs/cluster.md", "## SLURM"),
    "preemption": ("docs/cluster.md", "## Preemption"),
    "faster evaluation": ("docs/faq.md", "**Would faster-coco-eval make evaluations faster?**"),
    "safetensors and model card": ("docs/training.md", "## Share a model: safetensors and the model card"),
}


def links(page: Path) -> list[tuple[Path, str]]:
    """Pages that a page links to, with the anchors."""
    found = [(page.parent / target if target else page, anchor) for target, anchor in LINK.findall(page.read_text())]
    return [(target.resolve(), anchor) for target, anchor in found if target.suffix == ".md" and target.is_file()]


@functools.cache
def within_two_clicks() -> frozenset[Path]:
    """Pages that are reached from the README by one link or two."""
    first = {page for page, _ in links(ROOT / "README.md")}
    return frozenset(first | {page for start in first for page, _ in links(start)})


@pytest.mark.parametrize("question", ANSWERS)
def test_an_answer_is_found_within_two_clicks(question: str) -> None:
    page, beginning = ANSWERS[question]
    assert ROOT / page in within_two_clicks()
    assert any(line.startswith(beginning) for line in (ROOT / page).read_text().splitlines())


def _anchors(page: Path) -> set[str]:
    """Of the headings, as both GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [
        re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).lower()).strip() for text in headings
    ]
    return {re.sub(r"\s", "-", text) for text in plain}


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_a_link_to_a_heading_finds_it(page: Path) -> None:
    lost = [f"{target.name}#{anchor}" for target, anchor in links(page) if anchor and anchor not in _anchors(target)]
    assert not lost


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_a_page_begins_with_words_for_its_reader(page: Path) -> None:
    title, _, first = page.read_text().split("\n")[:3]
    assert title.startswith("# ")
    assert re.match(r"[A-Z`]", first), "a sentence, before any table, heading, command or image"
