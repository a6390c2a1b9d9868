"""Loggers for the terminal and for a file per process, messages that repeat less often, and small tables."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections import Counter
from typing import Any

from tabulate import tabulate
from termcolor import colored

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]


_MARKS = {logging.WARNING: ("WARNING", "blink"), logging.ERROR: ("ERROR", "underline")}  # from ERROR on, the same


class _LineFormat(logging.Formatter):
    """Lines with a time and the logger's name, where ``short`` stands for the ``root`` of loggers below that.

    For a terminal, times and names are colored, and only levels that call for attention are named.
    """

    def __init__(self, root: str, short: str, for_terminal: bool) -> None:
        super().__init__(datefmt="%m/%d %H:%M:%S")
        self.prefix = f"{root}."
        self.short = f"{short}." if short else ""
        self.for_terminal = for_terminal

    def usesTime(self) -> bool:
        return True

    def formatMessage(self, record: logging.LogRecord) -> str:
        name = record.name
        if name.startswith(self.prefix):
            name = self.short + name.removeprefix(self.prefix)
        if not self.for_terminal:
            return f"[{record.asctime}] {name} {record.levelname}: {record.message}"
        line = colored(f"[{record.asctime} {name}]: ", "green") + record.message
        mark = _MARKS.get(min(record.levelno, logging.ERROR))
        return line if mark is None else f"{colored(mark[0], 'red', attrs=[mark[1]])} {line}"


@functools.cache  # so that the same call adds no second handler
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Let a logger write to the terminal and to a file, from level DEBUG.

    Args:
        output: a file that ends in ``.txt`` or ``.log``, or a folder, for ``log.txt``, to append to; None: no file.
            Ranks other than 0 add ``.rank<number>`` to the name.
        distributed_rank: of this process; only rank 0 writes to the terminal.
        abbrev_name: stands for the name in lines of loggers below it; by default ``d2`` for ``detectron2``.
        enable_propagation: hand records on to the root logger too.
        configure_stdout: write to the terminal, in ``color``.
    """
    short = abbrev_name if abbrev_name is not None else {"detectron2": "d2"}.get(name, name)
    logger = logging.getLogger(name)

    def add(handler: logging.Handler, for_terminal: bool) -> None:
        handler.setFormatter(_LineFormat(name, short, for_terminal))
        logger.addHandler(handler)

    if configure_stdout and distributed_rank == 0:
        add(logging.StreamHandler(sys.stdout), color)
    if output is not None:
        path = os.fspath(output)
        if not path.endswith((".txt", ".log")):
            path = os.path.join(path, "log.txt")
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        suffix = f".rank{distributed_rank}" if distributed_rank else ""
        add(logging.FileHandler(path + suffix, encoding="utf-8"), False)
    logger.propagate = enable_propagation
    logger.setLevel(logging.DEBUG)
    return logger


_calls: Counter[Any] = Counter()
_last_times: dict[Any, float] = {}


def _call_site() -> tuple[str, Any]:
    """Name of the logger for, and place in the source of, the code that called a function of this module."""
    frame = sys._getframe(2)
    module = frame.f_globals.get("__name__", "__main__")
    return "detectron2" if module == "__main__" else module, (frame.f_code.co_filename, frame.f_lineno)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log a message unless there were ``n`` like it.

    Args:
        name: of the logger; by default that of the calling module.
        key: what makes messages alike: the line of code (``"caller"``), the text (``"message"``), or a tuple of both.
    """
    module, place = _call_site()
    parts = {"caller": place, "message": msg}
    kind = ("first", *(parts[part] for part in ((key,) if isinstance(key, str) else key)))
    _calls[kind] += 1
    if _calls[kind] <= n:
        logging.getLogger(name or module).log(lvl, msg, stacklevel=2)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` calls from a line of code; other arguments as for :func:`log_first_n`."""
    module, place = _call_site()
    earlier = _calls["every", place]
    _calls["every", place] = earlier + 1
    if earlier % n == 0:
        logging.getLogger(name or module).log(lvl, msg, stacklevel=2)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log a call from a line of code if the last logged one is ``n`` s ago; else as :func:`log_first_n`."""
    module, place = _call_site()
    now = time.monotonic()
    if now - _last_times.get(place, -float("inf")) >= n:
        _last_times[place] = now
        logging.getLogger(name or module).log(lvl, msg, stacklevel=2)


def create_small_table(small_dict: dict[str, Any]) -> str:
    """A table of one row, with the keys above it and three decimals, as results of an evaluation are shown."""
    layout = {"tablefmt": "pipe", "floatfmt": ".3f", "stralign": "center", "numalign": "center"}
    return tabulate([small_dict.values()], headers=list(small_dict), **layout)
