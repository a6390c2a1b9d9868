"""Steps whose thread hardly gets a core are told once, all others not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from d2_ext.engine.hooks import StarvedHint
from d2_ext.engine.hooks.starved import FIRST_STEPS, STEPS

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.utils.events import get_event_storage
from torch import nn


class Clock:
    """Time that passes as the steps say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.cpu = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "thread_time", lambda: self.cpu)


class Loop(TrainerBase):
    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__()
        self.run_step = lambda: step(self.iter)  # type: ignore[method-assign]
        self.register_hooks([StarvedHint()])


def warnings(caplog: pytest.LogCaptureFixture, step: Callable[[int], None], steps: int) -> list[str]:
    with caplog.at_level(logging.WARNING, "d2_ext"):
        Loop(step).train(0, steps)
    return [record.getMessage() for record in caplog.records]


def test_steps_without_a_core_are_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def step(iteration: int) -> None:
        clock.wall += 1.8
        clock.cpu += 0.9

    said = warnings(caplog, step, 100)
    assert len(said) == 1
    assert said[0].startswith(f"{STEPS} steps took 36.0 s, but their thread was on a core for 18.0 s only")
    assert "OMP_NUM_THREADS=1" in said[0]


def test_steps_that_are_starved_later_are_told_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)

    def step(iteration: int) -> None:
        clock.wall += 1.0
        clock.cpu += 1.0 if iteration < 60 else 0.1

    assert len(warnings(caplog, step, 100)) == 1


def test_the_first_steps_and_waiting_for_data_do_not_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)

    def step(iteration: int) -> None:
        waited = 5.0
        get_event_storage().put_scalar("data_time", waited)
        clock.wall += waited + 1.0
        clock.cpu += 0.0 if iteration < FIRST_STEPS else 0.9

    assert warnings(caplog, step, FIRST_STEPS + 3 * STEPS) == []


def test_it_applies_where_nothing_else_makes_the_thread_wait() -> None:
    assert StarvedHint.applies(nn.Linear(1, 1))
    assert not StarvedHint.applies(nn.Linear(1, 1, device="meta"))
