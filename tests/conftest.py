"""Fixtures for all tests; importing d2_ext first makes ``detectron2`` importable."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports Triton: without a GPU its kernels run in its interpreter.
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
# One thread for each of several test processes (pytest -n 2): otherwise they wait for each other on the same cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import d2_ext

import pytest
import torch

from helpers.fault_figures import pytest_runtest_logreport, pytest_sessionfinish  # noqa: F401 (hooks)
from helpers.shared import shared_folder

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_reaches_caplog() -> None:
    """Runs in the same process set up the loggers of the project: where their messages go, and which."""
    for name in ("d2_ext", "d2_ext.data", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        if logger.level >= logging.WARNING:  # a tool that says little
            logger.setLevel(logging.DEBUG)
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):  # the capture of an earlier test
                logger.removeHandler(handler)
    logging.getLogger("d2_ext").propagate = True


@pytest.fixture(scope="session")
def detectron2_kind() -> str:
    """``"stock"`` or ``"standin"``: which implementation the tests run on."""
    return d2_ext.ensure_detectron2()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Exported tiny detectors, see ``helpers.exported_files``, which is imported for those who ask for them alone."""
    from helpers.exported_files import ExportedFiles, opened

    yield ExportedFiles(shared_folder(tmp_path_factory, "exported"))
    opened.cache_clear()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference outputs, which lies beside the project for its developers only."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"the folder of golden cases is not there: {folder}")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real data sets, which lies beside the project for its developers only."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"the folder of real data sets is not there: {folder}")
    return folder
