"""The tests in this folder are about what only the stand-in does."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _only_with_the_standin(detectron2_kind: str) -> None:
    if detectron2_kind != "standin":
        pytest.skip("an installed Detectron2 is in use, not the stand-in")
