"""Communication between the processes of a distributed run. Without one, each function acts as for a single process."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_machine_group: Any = None  # of the processes on this machine, once there is one


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Number of this process, from 0, among all."""
    return dist.get_rank() if _is_distributed() else 0


@functools.cache  # a second call must not make groups that the other processes do not know of
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Tell how many processes, of consecutive ranks, each machine has; :func:`detectron2.engine.launch` does so.

    AssertionError if the number of all processes is no multiple of it.
    """
    global _machine_group
    size = dist.get_world_size()
    assert size % num_workers_per_machine == 0, f"{size} processes cannot be {num_workers_per_machine} on each machine."
    _machine_group, _ = dist.new_subgroups(num_workers_per_machine)


def get_local_process_group() -> Any:
    """The process group of this machine; AssertionError if :func:`create_local_process_group` was not called."""
    assert _machine_group is not None, (
        "It is not known which processes share this machine. Start them with detectron2.engine.launch, or call "
        "detectron2.utils.comm.create_local_process_group after torch.distributed.init_process_group."
    )
    return _machine_group


def get_local_rank() -> int:
    """Number of this process, from 0, among those of its machine."""
    return dist.get_rank(get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return dist.get_world_size(get_local_process_group()) if _is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is the process that writes files and logs: rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until all processes have come here."""
    if get_world_size() > 1:
        on_gpu = dist.get_backend() == dist.Backend.NCCL
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


@functools.cache
def _cpu_group() -> Any:
    """All processes, connected by a backend that sends memory of the CPU."""
    return dist.new_group(backend="gloo") if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """The picklable objects of all processes, or of those of a group, by rank; they are sent through the CPU."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    received = [None] * dist.get_world_size(group)
    dist.all_gather_object(received, data, group=group)
    return received


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """As :func:`all_gather` on the process of rank ``dst``; an empty list on all others."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    received = [None] * dist.get_world_size(group) if get_rank() == dst else []
    dist.gather_object(data, received or None, dst=dst, group=group)
    return received


def shared_random_seed() -> int:
    """A random number from 0 to 2^31 - 1 that is the same in all processes; each draws from numpy's generator."""
    return all_gather(np.random.randint(2**31))[0]


@torch.no_grad()
def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Average, or sum, tensors of one shape and dtype over the processes.

    The results, under the same names, are valid on rank 0 only; with one process they are the input itself.
    """
    size = get_world_size()
    if size == 1:
        return input_dict
    names = sorted(input_dict)  # the order of a dict may differ between processes
    total = torch.stack([input_dict[name] for name in names])
    dist.reduce(total, dst=0)
    if average and is_main_process():
        total /= size
    return dict(zip(names, total))
