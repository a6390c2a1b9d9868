"""The line and the bar of a training, on a logger and a terminal of the test's own."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from d2_ext.engine import progress

import pytest
import torch
from detectron2.engine import TrainerBase


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Loop(TrainerBase):
    """Steps that log a line and do nothing else."""

    def run_step(self) -> None:
        logging.getLogger("d2_ext.test_progress").warning("step %d", self.iter)


def _train(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, eval_period: int = 0) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    loop = _Loop()
    loop.register_hooks([progress.ProgressBar(eval_period)])
    loop.train(2, 5)
    return stderr.getvalue()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger as ``setup_logger`` leaves it, with a console handler."""
    logger = logging.getLogger("d2_ext")
    handlers, propagates = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.StreamHandler(sys.stdout)], False
    yield logger
    logger.handlers, logger.propagate = handlers, propagates


def test_a_terminal_gets_a_bar_that_starts_where_the_run_does_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _train(monkeypatch, _Terminal())
    assert "2/5" in shown
    assert shown.endswith("\r")  # cleared, nothing behind it
    assert not shown.split("\r")[-2].strip()


def test_lines_of_the_log_stand_above_the_bar(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.handlers = [logging.StreamHandler(sys.stdout)]
    shown = _train(monkeypatch, _Terminal())
    assert capsys.readouterr().out.splitlines() == ["step 2", "step 3", "step 4"]
    assert "2/5" in shown
    assert [type(handler) for handler in logger.handlers] == [logging.StreamHandler]


def test_a_file_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _train(monkeypatch, io.StringIO()) == ""


def test_a_line_of_the_training_ends_with_the_memory_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(progress, "peak_bytes", lambda: 3 * 2**20)
    logger = logging.getLogger("detectron2.utils.events")
    monkeypatch.setattr(logger, "filters", [])
    progress.log_memory_of_the_process()
    progress.log_memory_of_the_process()
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.info(" iter: %d  lr: 0.1  ", 5)
    assert caplog.messages == [" iter: 5  lr: 0.1  max_mem: 3M"]


def test_a_log_on_a_full_disk_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fvcore")
    handler = logging.StreamHandler(open("/dev/full", "w"))  # noqa: SIM115 (closed by what is tested)
    logger.addHandler(handler)
    try:
        progress.go_on_without_a_log()
        for _ in range(3):
            logger.warning("a line")
    finally:
        logger.removeHandler(handler)
        handler.stream.close()
    said = capsys.readouterr().err
    assert said.count("warning: /dev/full cannot be written (No space left on device) and ends here") == 1
    assert "Traceback" not in said
