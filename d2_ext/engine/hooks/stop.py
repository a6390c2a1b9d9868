"""SIGTERM and Ctrl-C: the step is finished, everything is saved, and the run says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Training was stopped from outside; no Exception, because nothing failed.

    Args:
        number: of the signal.
        message: what was saved, and how to go on.
        mid_step: whether the weights may be half changed.
    """

    def __init__(self, number: int, message: str = "", *, mid_step: bool = False) -> None:
        super().__init__(message)
        self.number = number
        self.mid_step = mid_step

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, as shells report them."""
        return 128 + self.number


class StopOnSignal(HookBase):
    """Ends the loop after the step during which SIGINT or SIGTERM came; in all processes if it came to one.

    A single process does not wait for the end of an evaluation (see :meth:`at_once`); and at a second signal it stops
    where it is. To be registered last, in all processes.
    """

    def __init__(self) -> None:
        self._received = 0
        self._at_once = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the ``with`` block (in the main thread; Python delivers them nowhere else)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block nothing is lost by stopping immediately: no weight changes there."""
        self._at_once = comm.get_world_size() == 1
        try:
            if self._received and self._at_once:
                raise Interrupted(self._received)
            yield
        finally:
            self._at_once = False

    def after_step(self) -> None:
        received = max(comm.all_gather(self._received))
        if received:
            raise Interrupted(received)

    def _receive(self, number: int, frame: FrameType | None) -> Any:
        if comm.get_world_size() > 1:  # the launcher repeats signals, and the others must not be left waiting
            self._received = number
        elif self._at_once:
            raise Interrupted(number)
        elif self._received:
            raise Interrupted(number, mid_step=True)
        else:
            self._received = number
