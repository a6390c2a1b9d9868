"""Loggers: files per rank, abbreviated names, messages that repeat less often; on either implementation."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from detectron2.utils.logger import create_small_table, log_every_n, log_every_n_seconds, log_first_n, setup_logger


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_rank_zero_writes_to_the_terminal_and_all_ranks_to_their_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (0, 1):
        logger = setup_logger(str(tmp_path), rank, name=f"contract_logger{rank}", color=False)
        assert (logger.level, logger.propagate) == (logging.DEBUG, False)
        logger.debug("from %d", rank)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "log.txt.rank1"]
    assert (tmp_path / "log.txt").read_text().endswith("contract_logger0 DEBUG: from 0\n")
    assert (tmp_path / "log.txt.rank1").read_text().endswith("contract_logger1 DEBUG: from 1\n")
    printed = capsys.readouterr().out
    assert "from 0" in printed
    assert "from 1" not in printed


def test_the_root_name_is_abbreviated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logger(name="contract_long", abbrev_name="cl")
    logging.getLogger("contract_long.part").warning("careful")
    printed = capsys.readouterr().out
    assert "cl.part]" in printed
    assert "WARNING" in printed
    assert "contract_long" not in printed


def test_the_same_call_adds_no_second_handler(tmp_path: Path) -> None:
    file = str(tmp_path / "own.log")
    logger = setup_logger(file, name="contract_twice", configure_stdout=False)
    assert setup_logger(file, name="contract_twice", configure_stdout=False) is logger
    assert len(logger.handlers) == 1
    logger.info("once")
    assert Path(file).read_text().count("once") == 1


def test_log_first_n_counts_by_line_of_code_or_by_message(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        log_first_n(logging.INFO, f"line {number}", n=2)
    assert caplog.messages == ["line 0", "line 1"]
    caplog.clear()
    for _ in range(2):
        log_first_n(logging.INFO, "same", key="message")
    log_first_n(logging.INFO, "same", key="message")
    log_first_n(logging.INFO, "same", key=("caller", "message"))
    assert caplog.messages == ["same", "same"]


def test_messages_repeat_after_n_calls_or_seconds_in_the_logger_of_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(7):
        log_every_n(logging.INFO, str(number), n=3)
        log_every_n_seconds(logging.INFO, f"{number} s", n=3600)
    assert caplog.messages == ["0", "0 s", "3", "6"]
    caplog.clear()
    log_first_n(logging.INFO, "x")
    log_first_n(logging.INFO, "x", name="other")
    assert [record.name for record in caplog.records] == [__name__, "other"]


def test_a_small_table_has_three_decimals() -> None:
    header, line, values = create_small_table({"AP": 1.23456, "AP50": 2.0}).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["AP", "AP50"]
    assert set(line) == {"|", ":", "-"}
    assert [cell.strip() for cell in values.split("|")[1:-1]] == ["1.235", "2.000"]
