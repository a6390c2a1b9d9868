"""One training over several processes: their start, and the group in which they find each other."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class _Group:
    """What each process has to know to join the others."""

    machines: int
    per_machine: int
    machine: int
    url: str | None
    timeout: timedelta

    def join(self, local_rank: int) -> None:
        """Make this process number ``local_rank`` of its machine, over NCCL with GPUs and over gloo without."""
        gpus, rank = torch.cuda.device_count(), self.machine * self.per_machine + local_rank
        assert gpus == 0 or self.per_machine <= gpus, f"{self.per_machine} processes want a GPU each; there are {gpus}."
        if gpus:
            torch.cuda.set_device(local_rank)
        size = self.machines * self.per_machine
        dist.init_process_group("nccl" if gpus else "gloo", self.url, self.timeout, size, rank)
        comm.create_local_process_group(self.per_machine)
        comm.synchronize()  # nobody starts before all are there


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``main_func(*args)`` in this process, or in several new ones that form a process group; wait for them.

    To be called on every machine. Without GPUs the processes use the CPU.

    Args:
        main_func: for several processes it has to be importable by them, and ``args`` are pickled.
        num_gpus_per_machine: processes on each machine, one for each GPU.
        num_machines, machine_rank: machines that take part, and the number of this one, from 0.
        dist_url: where the processes meet, such as ``"tcp://10.0.0.1:29500"``. ``"auto"`` takes a free port of this
            machine; None leaves it to environment variables, as torchrun sets them.
        timeout: of a collective operation that some process never enters.

    Raises:
        AssertionError: for ``"auto"`` with several machines. Errors of a process end all, as ProcessRaisedException.
    """
    if num_machines * num_gpus_per_machine <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, f"dist_url 'auto' serves one machine, not {num_machines}. Name a host and a port."
        with socket.create_server(("127.0.0.1", 0)) as free:
            dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    group = _Group(num_machines, num_gpus_per_machine, machine_rank, dist_url, timeout)
    mp.start_processes(_take_part, (group, main_func, args), nprocs=num_gpus_per_machine, daemon=False)


def _take_part(local_rank: int, group: _Group, main_func: Callable[..., Any], args: tuple) -> None:
    group.join(local_rank)
    main_func(*args)
