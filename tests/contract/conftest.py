"""Fixtures of the contract tests, which hold for either implementation of Detectron2."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def d2_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The records of Detectron2, whose logger keeps them to itself once it has been set up."""
    logger = logging.getLogger("detectron2")
    before = logger.propagate, logger.level
    logger.propagate = True
    logger.setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    yield caplog
    logger.propagate = before[0]
    logger.setLevel(before[1])
