"""One row of the table of bad input: what is wrong, where, and what a user reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A mistake and what is expected of the program.

    Attributes:
        what: is wrong, in words.
        where: the file, key or option that holds the mistake.
        says: parts of the message, in any order; the place and the value are among them.
        code: exit code: 0 accepted, 1 data or weights, 2 wrong usage.
        given: command line (of ``train_net.py`` or of a tool), or what makes the files of the mistake in a folder.
        base: config of the run, for cases of configs and checkpoints; the tool, for command lines.
    """

    what: str
    where: str
    says: tuple[str, ...]
    code: int
    given: tuple[str, ...] | Callable[[Path], object]
    base: str = ""

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.where}: {self.what}"
