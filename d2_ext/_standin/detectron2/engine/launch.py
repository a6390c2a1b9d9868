"""One training over several processes: their start, and the group in which they find each other."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


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

    To be called on every machine. Several processes have to be able to import ``main_func``; ``args`` are pickled.

    Args:
        num_gpus_per_machine: processes on each machine, one for each GPU; without GPUs they use the CPU.
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
    group = num_machines, num_gpus_per_machine, machine_rank, dist_url, timeout
    mp.start_processes(_take_part, (group, main_func, args), nprocs=num_gpus_per_machine, daemon=False)


def _take_part(local_rank: int, group: tuple[Any, ...], main_func: Callable[..., Any], args: tuple) -> None:
    """Make this process number ``local_rank`` of its machine, over NCCL with GPUs and over gloo without, and work."""
    machines, per_machine, machine, url, timeout = group
    gpus = torch.cuda.device_count()
    assert gpus == 0 or per_machine <= gpus, f"{per_machine} processes want a GPU each; there are {gpus}."
    if gpus:
        torch.cuda.set_device(local_rank)
    rank = machine * per_machine + local_rank
    dist.init_process_group("nccl" if gpus else "gloo", url, timeout, machines * per_machine, rank)
    comm.create_local_process_group(per_machine)
    comm.synchronize()  # nobody starts before all are there
    main_func(*args)
