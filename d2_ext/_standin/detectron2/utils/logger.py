"""Logging: coloured output of rank 0, a file for each rank, and messages that repeat less often."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from typing import IO, Any, ClassVar

import torch
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from termcolor import colored

__all__ = ["setup_logger", "log_first_n", "log_every_n", "log_every_n_seconds"]

D2_LOG_BUFFER_SIZE_KEY = "D2_LOG_BUFFER_SIZE"
DEFAULT_LOG_BUFFER_SIZE = 1024 * 1024  # bytes, for logs written to remote storage

_TIME_FORMAT = "%m/%d %H:%M:%S"
_LOG_COUNTER: Counter[tuple] = Counter()
_LOG_TIMER: dict[tuple, float] = {}


class _ColorfulFormatter(logging.Formatter):
    """Shortens the logger's root name, and paints the level of warnings and errors."""

    _PREFIX: ClassVar = {
        logging.WARNING: ("WARNING", ["blink"]),
        logging.ERROR: ("ERROR", ["blink", "underline"]),
        logging.CRITICAL: ("ERROR", ["blink", "underline"]),
    }

    def __init__(self, *args: Any, root_name: str, abbrev_name: str = "", **kwargs: Any) -> None:
        self._root_name = root_name + "."
        self._abbrev_name = abbrev_name and abbrev_name + "."
        super().__init__(*args, **kwargs)

    def formatMessage(self, record: logging.LogRecord) -> str:
        # The record itself is changed, so the handlers that follow (the log file) write the short name too.
        record.name = record.name.replace(self._root_name, self._abbrev_name)
        text = super().formatMessage(record)
        if record.levelno not in self._PREFIX:
            return text
        word, attributes = self._PREFIX[record.levelno]
        return colored(word, "red", attrs=attributes) + " " + text


@functools.lru_cache  # the same call again must not add the same handlers again
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
    """Give the logger ``name`` level DEBUG, standard output on rank 0, and a file.

    Args:
        output: file (if it ends with ``.txt`` or ``.log``) or folder, where ``log.txt`` is appended to; ranks above 0
            write ``<file>.rank<N>``. No file for None.
        distributed_rank: rank of this process.
        color: colour the standard output.
        name: root name of the loggers that are set up.
        abbrev_name: what the output shows instead of ``name``; ``d2`` for ``detectron2`` by default; "" for nothing.
        enable_propagation: let records reach the parent loggers too.
        configure_stdout: write to standard output at all.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_TIME_FORMAT)

    if configure_stdout and distributed_rank == 0:
        if abbrev_name is None:
            abbrev_name = "d2" if name == "detectron2" else name
        layout = colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s"
        painted = _ColorfulFormatter(layout, datefmt=_TIME_FORMAT, root_name=name, abbrev_name=str(abbrev_name))
        _add_handler(logger, sys.stdout, painted if color else plain)

    if output is not None:
        file = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            file += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(file))
        _add_handler(logger, _cached_log_stream(file), plain)
    return logger


def _add_handler(logger: logging.Logger, stream: IO, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.cache  # loggers of different names may share a file
def _cached_log_stream(filename: str) -> IO:
    stream = PathManager.open(filename, "a", buffering=_get_log_stream_buffer_size(filename))
    atexit.register(stream.close)
    return stream


def _get_log_stream_buffer_size(filename: str) -> int:
    if "://" not in filename:
        return -1
    return int(os.environ.get(D2_LOG_BUFFER_SIZE_KEY, DEFAULT_LOG_BUFFER_SIZE))


def _find_caller() -> tuple[str, tuple]:
    """Module name, and a key of (file, line, function), of the first frame outside this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    code = frame.f_code
    return "detectron2" if module == "__main__" else module, (code.co_filename, frame.f_lineno, code.co_name)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log a message only the first ``n`` times.

    Args:
        lvl: level of the message.
        msg: the message.
        n: how often at most.
        name: logger; by default that of the calling module.
        key: what counts as the same: "caller" (the line of code), "message", or both as a tuple.
    """
    keys = (key,) if isinstance(key, str) else key
    assert len(keys) > 0
    module, caller = _find_caller()
    counted = (caller if "caller" in keys else ()) + ((msg,) if "message" in keys else ())
    _LOG_COUNTER[counted] += 1
    if _LOG_COUNTER[counted] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` calls from the same line of code."""
    module, caller = _find_caller()
    earlier_calls = _LOG_COUNTER[caller]
    _LOG_COUNTER[caller] = earlier_calls + 1
    if earlier_calls % n == 0:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log from the same line of code at most once in ``n`` seconds."""
    module, caller = _find_caller()
    now = time.time()
    if caller not in _LOG_TIMER or now - _LOG_TIMER[caller] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _LOG_TIMER[caller] = now


def create_small_table(small_dict: dict[str, Any]) -> str:
    """A table of one row, with the keys as headings and three decimals."""
    style = {"tablefmt": "pipe", "floatfmt": ".3f", "stralign": "center", "numalign": "center"}
    return tabulate([tuple(small_dict.values())], headers=list(small_dict), **style)


def _log_api_usage(identifier: str) -> None:
    """Count the use of a component in PyTorch's own usage log (a no-op in public builds)."""
    torch._C._log_api_usage_once("detectron2." + identifier)
