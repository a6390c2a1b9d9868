"""Errors that a user can correct: one message, one exit code, no traceback, from whichever process they come."""

from __future__ import annotations

import logging
import re
import sys
import threading

from d2_ext.data.reproducible import raise_if_a_worker_died
from d2_ext.errors import CheckpointError, ConfigError, DatasetError, ExportError, TrainingError, is_out_of_memory

__all__ = ["explain", "log_user_errors_in_one_line"]

EXIT_CODES: dict[type[Exception], int] = {
    ConfigError: 2,
    DatasetError: 1,
    CheckpointError: 1,
    TrainingError: 1,
    ExportError: 1,
}
# Loader workers and spawned processes hand on the text of an error, its traceback included.
_IN_TRACEBACK = re.compile(rf"d2_ext\.errors\.({'|'.join(kind.__name__ for kind in EXIT_CODES)}): ")


def explain(error: BaseException) -> tuple[int | None, str]:
    """Exit code and message of an error that a user can correct.

    Args:
        error: raised here, in a worker of a loader, or in a process that ``launch`` started.

    Returns:
        2 for wrong usage, 1 for data, weights, files that the system refuses and memory that ran out, None for all
        other errors; and the message without traceback.

    Example:
        >>> explain(ConfigError("SOLVER.MAX_ITER is 0"))
        (2, 'SOLVER.MAX_ITER is 0')
    """
    if isinstance(error, RuntimeError) and not isinstance(error, TrainingError):
        try:  # torch raises the death of a loader's worker wherever the process is, also behind the training
            raise_if_a_worker_died(error)
        except TrainingError as named:
            error = named
    text = str(error)
    last = None
    for last in _IN_TRACEBACK.finditer(text):  # noqa: B007 (the last one is meant)
        pass
    if last is not None:
        code = next(code for kind, code in EXIT_CODES.items() if kind.__name__ == last.group(1))
        return code, text[last.end() :].strip()
    known = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), None)
    if known is None and is_out_of_memory(error):
        last_line = (text.strip().splitlines() or ["an allocation failed"])[-1]
        return 1, (
            f"Out of memory: {last_line}. Make batches (SOLVER.IMS_PER_BATCH, --batch-size) or images smaller, load "
            "data in fewer processes (DATALOADER.NUM_WORKERS), or free memory."
        )
    return 1 if known is None and isinstance(error, OSError) else known, text


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and explain(error)[0] is not None:
            record.msg, record.args = "%s %s", (record.getMessage(), explain(error)[1])
            record.exc_info = record.exc_text = None
        return True


_ONE_LINE = _OneLine()


def log_user_errors_in_one_line() -> None:
    """Keep tracebacks of errors that a user can correct out of the log of Detectron2's training loop.

    Those of threads, such as the one that writes for TensorBoard, become a warning of one line: they end no run.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(_ONE_LINE)  # adding it again changes nothing
    threading.excepthook = _say_in_one_line


def _say_in_one_line(failed: threading.ExceptHookArgs) -> None:
    error = failed.exc_value
    if error is None or explain(error)[0] is None:
        threading.__excepthook__(failed)
        return
    name = failed.thread.name if failed.thread is not None else "a thread"
    print(f"warning: {name} ended: {explain(error)[1]}", file=sys.stderr)  # noqa: T201
