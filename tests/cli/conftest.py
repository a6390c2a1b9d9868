"""Fixtures that several tools share."""

from __future__ import annotations

import pytest

from helpers.shared import locked, shared_folder
from helpers.tiny_run import TinyRun, found_tiny_run, train_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run folder of a real training of seconds; the processes of a parallel run share one, so leave it as it is."""
    folder = shared_folder(tmp_path_factory, "tiny_run")
    with locked(folder):
        if (folder / "run/model_final.pth").is_file():
            return found_tiny_run(folder)
        return train_tiny_run(folder)
