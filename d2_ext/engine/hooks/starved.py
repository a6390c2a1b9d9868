"""A hint when other processes take the cores away: steps then take many times as long, and nothing else tells why."""

from __future__ import annotations

import logging
import os
import time

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)

FIRST_STEPS, STEPS = 5, 20  # that warm up; that are judged together
LEAST_SHARE = 0.7  # of their time in which the main thread must have been on a core


class StarvedHint(HookBase):
    """Compares the time of steps with the CPU time of the thread that makes them; says once if it hardly got a core.

    On a CPU that thread computes, or waits for others that compute the other parts of the same operation. So it is on
    a core nearly all the time, unless there are more threads than cores: then operations wait for a part whose thread
    has no core. Waiting for data is left out. To be registered before hooks that evaluate or save.
    """

    def __init__(self) -> None:
        self._steps = -FIRST_STEPS
        self._wall = self._cpu = self._wall_at_start = self._cpu_at_start = 0.0

    @staticmethod
    def applies(model: nn.Module) -> bool:
        """Whether nothing else makes the main thread wait: neither a GPU nor other processes of the run."""
        return next(model.parameters()).device.type == "cpu" and comm.get_world_size() == 1

    def before_step(self) -> None:
        self._wall_at_start, self._cpu_at_start = time.perf_counter(), time.thread_time()

    def after_step(self) -> None:
        waited = self.trainer.storage.latest().get("data_time", (0.0, 0))[0]
        self._steps += 1
        if not 0 < self._steps <= STEPS:
            return
        self._wall += time.perf_counter() - self._wall_at_start - waited
        self._cpu += time.thread_time() - self._cpu_at_start
        if self._steps < STEPS:
            return
        if self._cpu < LEAST_SHARE * self._wall:
            logger.warning(
                "%d steps took %.1f s, but their thread was on a core for %.1f s only: other processes take the cores "
                "(%d here, for %d threads of torch). End these, or start again with OMP_NUM_THREADS=%d.",
                *(STEPS, self._wall, self._cpu, os.cpu_count() or 1, torch.get_num_threads()),
                max(1, torch.get_num_threads() // 2),
            )
        else:  # look again at the next steps: others may come later
            self._steps, self._wall, self._cpu = 0, 0.0, 0.0
