"""Errors of users keep their message and exit code on the way out of workers and processes."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from d2_ext.data.mapper import CheckedMapper
from d2_ext.errors import CheckpointError, ConfigError, DatasetError
from d2_ext.runs.user_errors import explain, log_user_errors_in_one_line

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image
from torch.utils.data import DataLoader

from helpers.failing_calls import no_memory_of_opencv


@pytest.mark.parametrize(("kind", "code"), [(ConfigError, 2), (DatasetError, 1), (CheckpointError, 1)])
def test_each_kind_has_its_exit_code(kind: type[Exception], code: int) -> None:
    assert explain(kind("what, expected, do")) == (code, "what, expected, do")


def test_other_errors_have_none() -> None:
    assert explain(RuntimeError("x")) == (None, "x")


def test_a_broken_image_in_a_worker_of_the_loader_is_named_without_the_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 4
    data[start : start + 8] = b"\xff" * 8  # header and end are whole
    path.write_bytes(data)
    records = [{"file_name": str(path), "width": 64, "height": 64, "annotations": []}]
    mapper = CheckedMapper(get_cfg(), is_train=True)
    with pytest.raises(DatasetError) as caught:
        next(iter(DataLoader(records, batch_size=None, num_workers=1, collate_fn=mapper)))
    code, message = explain(caught.value)
    assert code == 1
    assert message.startswith(f"Image '{path}' cannot be read")
    assert "Traceback" not in message


def test_the_log_of_the_training_loop_has_one_line_for_them(caplog: pytest.LogCaptureFixture) -> None:
    log_user_errors_in_one_line()
    logger = logging.getLogger("detectron2.engine.train_loop")
    with caplog.at_level(logging.ERROR, logger=logger.name):
        for error in (DatasetError("a.jpg is broken"), RuntimeError("a bug")):
            try:
                raise error
            except (DatasetError, RuntimeError):
                logger.exception("Exception during training:")
    first, second = caplog.records
    assert first.getMessage() == "Exception during training: a.jpg is broken"
    assert not first.exc_info
    assert second.exc_info


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 1.00 TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        no_memory_of_opencv(),
    ],
)
def test_memory_that_ran_out_is_one_line_with_advice(error: Exception) -> None:
    code, message = explain(error)
    assert code == 1
    assert message.startswith("Out of memory: ")
    assert "SOLVER.IMS_PER_BATCH" in message
    assert "\n" not in message


def test_what_the_system_refuses_is_told_from_every_process() -> None:
    assert explain(PermissionError(13, "Permission denied", "/a/b")) == (1, "[Errno 13] Permission denied: '/a/b'")


def test_a_thread_that_cannot_write_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
    log_user_errors_in_one_line()

    def write() -> None:
        raise OSError(28, "No space left on device", "events")

    thread = threading.Thread(target=write, name="writer")
    thread.start()
    thread.join()
    assert capsys.readouterr().err == "warning: writer ended: [Errno 28] No space left on device: 'events'\n"
