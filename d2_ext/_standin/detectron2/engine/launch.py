"""Starting a function in several processes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

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
    """Call ``main_func(*args)``: here if one process is asked for, else in new processes, one per GPU.

    Without GPUs the processes run on the CPU and communicate by gloo. Call this on each machine.

    Args:
        main_func: importable by the new processes; its result is dropped.
        num_gpus_per_machine: processes on this machine.
        num_machines: machines of the run.
        machine_rank: number of this machine.
        dist_url: where the processes meet, such as ``tcp://127.0.0.1:29500``; "auto" for a free port on one machine.
        args: arguments of ``main_func``.
        timeout: of the communication.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url=auto not supported in multi-machine jobs."
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url is not None and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            "file:// is not a reliable init_method in multi-machine jobs. Prefer tcp://"
        )
    worker_args = (main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout)
    mp.start_processes(_distributed_worker, nprocs=num_gpus_per_machine, args=worker_args, daemon=False)


def _find_free_port() -> int:
    """A port that is free now; another process may still take it before it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _distributed_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_gpus_per_machine: int,
    machine_rank: int,
    dist_url: str | None,
    args: tuple,
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        found = torch.cuda.device_count()
        assert num_gpus_per_machine <= found, f"{num_gpus_per_machine} processes need as many GPUs; found {found}."
    try:
        dist.init_process_group(
            backend="nccl" if on_gpu else "gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=machine_rank * num_gpus_per_machine + local_rank,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error(f"Process group URL: {dist_url}")
        raise
    _join(local_rank if on_gpu else None, num_gpus_per_machine)
    main_func(*args)
    _leave()


def _join(device: int | None, processes_per_machine: int) -> None:
    """Take part in the machine's group, on GPU ``device`` if any, and wait until all others do."""
    comm.create_local_process_group(processes_per_machine)
    if device is not None:
        torch.cuda.set_device(device)
    comm.synchronize()  # a slow process must not make the first communication of the others time out


def _leave() -> None:
    """Wait until all others are done, too, and end the communication: its threads must not outlive the interpreter."""
    comm.synchronize()
    if dist.is_initialized():  # main_func may have left already
        dist.destroy_process_group()
