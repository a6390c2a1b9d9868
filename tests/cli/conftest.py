"""Fixtures that several tools share."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from helpers.tiny_run import TinyRun, found_tiny_run, train_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run folder of a real training of seconds; the processes of a parallel run share one, so leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny_run"
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "run/model_final.pth").is_file():
            return found_tiny_run(folder)
        folder.mkdir(exist_ok=True)
        return train_tiny_run(folder)
