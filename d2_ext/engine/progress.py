"""What a user sees while a run trains: no config dump, memory in each line also without a GPU, a bar on a terminal."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys

from d2_ext.utils.memory import peak_bytes

import torch
from detectron2.engine import HookBase
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

__all__ = [
    "LOGGERS",
    "ProgressBar",
    "go_on_without_a_log",
    "log_config_into_the_file_only",
    "log_memory_of_the_process",
]

LOGGERS = ("d2_ext", "detectron2", "fvcore")  # those with a handler of their own, see setup_logger


class _Memory(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = f"{record.getMessage().rstrip()}  max_mem: {peak_bytes() / 2**20:.0f}M"
        record.args = None
        return True


_MEMORY = _Memory()


def log_memory_of_the_process() -> None:
    """Without a GPU, end Detectron2's line of a training with the peak memory of this process."""
    if not torch.cuda.is_available():
        logging.getLogger("detectron2.utils.events").addFilter(_MEMORY)  # adding it again changes nothing


class _NoConfigOnConsole(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(("Full config", "Config file")):
            return True
        for handler in logging.getLogger(record.name).handlers:
            if getattr(handler, "stream", None) not in (sys.stdout, sys.stderr):
                handler.handle(record)
        return False


_NO_CONFIG = _NoConfigOnConsole()


def log_config_into_the_file_only() -> None:
    """Keep the hundreds of lines of Detectron2's config dump off the console; the log file has them."""
    logging.getLogger("detectron2").addFilter(_NO_CONFIG)  # adding it again changes nothing


def go_on_without_a_log() -> None:
    """Let a log file that cannot be written, as on a full disk, end with one line on the terminal; the run goes on.

    The handlers of :data:`LOGGERS` would print a traceback for every further line.
    """
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream not in (sys.stdout, sys.stderr):
                handler.handleError = functools.partial(_end_log, handler)  # type: ignore[method-assign]


def _end_log(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    error, file = sys.exc_info()[1], getattr(handler.stream, "name", "")
    if not isinstance(error, OSError):
        logging.StreamHandler.handleError(handler, record)
        return
    handlers = [each for name in LOGGERS for each in logging.getLogger(name).handlers]
    for each in handlers:  # several may write the file
        if isinstance(each, logging.StreamHandler) and getattr(each.stream, "name", None) == file:
            with contextlib.suppress(OSError):
                each.stream.close()
            each.stream = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    print(f"warning: {file} cannot be written ({error.strerror}) and ends here; the run goes on.", file=sys.stderr)  # noqa: T201


class ProgressBar(HookBase):
    """A bar of the iterations below the log's lines, if stderr is a terminal.

    It belongs before the hook that evaluates, whose tables are printed in its place.

    Args:
        eval_period: iterations between evaluations; 0: only after the last one.
    """

    def __init__(self, eval_period: int = 0) -> None:
        self._eval_period = eval_period
        self._open = contextlib.ExitStack()

    def before_train(self) -> None:
        """Draw it, and let the loggers write above it."""
        # disable=None: not where stderr is a file or a pipe.
        bar = tqdm(
            initial=self.trainer.start_iter,
            total=self.trainer.max_iter,
            unit=" iterations",
            dynamic_ncols=True,
            disable=None,
            leave=False,
        )
        self._bar = self._open.enter_context(bar)
        if not bar.disable:
            loggers = [logging.getLogger(name) for name in LOGGERS]
            self._open.enter_context(logging_redirect_tqdm([logger for logger in loggers if logger.handlers]))

    def after_step(self) -> None:
        """Move it."""
        self._bar.update()
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._eval_period > 0 and done % self._eval_period == 0):
            self._bar.clear()

    def after_train(self) -> None:
        """Take it away."""
        self._open.close()
