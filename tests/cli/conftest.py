"""Fixtures that several tools share."""

from __future__ import annotations

import pytest

from helpers.tiny_run import TinyRun, train_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run folder of a real training of seconds."""
    return train_tiny_run(tmp_path_factory.mktemp("tiny_run"))
