"""The fuzzer of binary files on a few of them: every format is read, and a crash costs one file."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

import pytest
from fuzz.mutated_files import FORMATS, mutated, read_mutated

import helpers.forked  # noqa: F401 (what its server of processes has imported)

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


QUICK = ("onnx", "pth", "png")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in FORMATS])
def test_changed_files_give_a_value_or_an_error_of_ours(name: str) -> None:
    ends = read_mutated(name, 24)
    assert list(ends) == list(range(24))
    assert {end.partition(" ")[0] for end in ends.values()} <= {"read", "refused", "crashed"}, ends
    assert "refused" in ends.values(), "the changes change nothing"


def test_changes_follow_from_the_seed() -> None:
    honest = bytes(range(100))
    assert mutated(honest, "a 1") == mutated(honest, "a 1")
    assert len({mutated(honest, f"a {number}") for number in range(50)}) > 40


def _die_at_each_third(name: str, numbers: range, pipe: Connection) -> None:
    for number in numbers:
        if number % 3 == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        pipe.send((number, "read"))


def test_a_crash_costs_one_file() -> None:
    ends = read_mutated("png", 7, _die_at_each_third)
    assert list(ends.values()) == ["read", "read", "crashed (SIGSEGV)"] * 2 + ["read"]
