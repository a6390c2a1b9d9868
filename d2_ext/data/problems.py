"""What is wrong with a data set: a reader stops at the first error, a checker collects them all."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from d2_ext.errors import DatasetError

from detectron2.utils.logger import log_first_n

__all__ = ["Problem", "Problems", "box_in_image"]


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        severity: "error", "warning" or "note".
        kind: the same few words for all findings of a kind, such as "box outside the image".
        where: the file, with its line or entry.
        text: what is wrong there.
    """

    severity: str
    kind: str
    where: str
    text: str


class Problems:
    """Where readers of data sets report what they find.

    Args:
        collect: keep errors and let the reader go on with the rest; else the first error is raised.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.found: list[Problem] = []
        self._dropped: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def error(self, kind: str, where: str, text: str) -> None:
        """Report what makes training or evaluation wrong or impossible.

        Raises:
            DatasetError: unless errors are collected.
        """
        if not self.collect:
            raise DatasetError(f"{where}: {text}" if where else text)
        self.found.append(Problem("error", kind, where, text))

    def refuse(self, kind: str, where: str, error: DatasetError) -> None:
        """Report an error that was raised already; raises it anew unless errors are collected."""
        if not self.collect:
            raise error
        self.found.append(Problem("error", kind, where, str(error)))

    def dropped(self, what: str, where: str, text: str = "") -> None:
        """Report something that is left out of the records, such as ``"boxes without area"``."""
        self._dropped[what] += 1
        self._first.setdefault(what, where)
        if self.collect:
            self.found.append(Problem("warning", f"dropped {what}", where, text))

    def log_dropped(self, logger: logging.Logger, source: object) -> None:
        """Log how much was left out, and the first place of each kind."""
        for what, count in sorted(self._dropped.items()):
            text = f"{source}: dropped {count} {what}, first: {self._first[what]}"
            log_first_n(logging.WARNING, text, name=logger.name, key="message")  # records are read several times


def box_in_image(box: list[float], size: tuple[int, int], where: str, problems: Problems, what: str = "boxes") -> bool:
    """Whether a box XYWH px has an area in an image (width, height); one that has none is reported as dropped."""
    x, y, w, h = box
    if w <= 0 or h <= 0:
        problems.dropped(f"{what} without area", where, f"box {box}")
    elif x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0:
        problems.dropped(f"{what} outside the image", where, f"box {box} in an image of {size[0]}x{size[1]}")
    else:
        return True
    return False
