"""A short soak: nothing that is opened or started stays open, and memory does not climb."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from d2_ext.errors import ConfigError  # noqa: F401 (d2_ext before detectron2)

import pytest

from helpers.scripts import load_script

soak = load_script("benchmarks/soak.py")


def test_growth_is_the_end_above_the_second_quarter() -> None:
    samples = [soak.Sample(step, 100 + max(0, step - 4), 7, 3) for step in range(1, 9)]
    # memory 100 100 100 100 | 101 102 103 104: median of steps 7, 8 is 103.5, of steps 3, 4 is 100
    assert soak.growth(samples)["memory_mb"] == 3.5
    assert soak.growth(samples)["handles"] == soak.growth(samples)["threads"] == 0


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="figures come from /proc")
@pytest.mark.parametrize("name", soak.PHASES)
def test_200_iterations_and_images_leave_no_handle_and_no_thread(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    phase = soak.soak(200, 200, tmp_path, [name])["phases"][name]
    record_property(name, phase["growth"])
    assert phase["growth"]["handles"] <= 0, phase["growth"]
    assert phase["growth"]["threads"] <= 0, phase["growth"]
    assert phase["growth"]["memory_mb"] < 20, phase["growth"]
