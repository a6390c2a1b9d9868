"""Communication between the processes of a distributed run; without a process group there is one process, rank 0."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP: Any = None
_NO_LOCAL_GROUP = (
    "There is no process group of this machine. Start the processes with detectron2.engine.launch, or call "
    "comm.create_local_process_group(num_workers_per_machine) after torch.distributed.init_process_group."
)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Number of this process, in 0 .. world size - 1."""
    return dist.get_rank() if _is_distributed() else 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the group of the processes of each machine; all processes have to call this together.

    Args:
        num_workers_per_machine: processes on each machine; divides the world size.
    """
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None
    assert get_world_size() % num_workers_per_machine == 0
    this_machine = get_rank() // num_workers_per_machine
    for machine in range(get_world_size() // num_workers_per_machine):
        first = machine * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))  # every rank creates every group
        if machine == this_machine:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> Any:
    """The group made by :func:`create_local_process_group`."""
    assert _LOCAL_PROCESS_GROUP is not None, _NO_LOCAL_GROUP
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Number of this process among those of its machine."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until all processes have come here."""
    if get_world_size() > 1:
        # NCCL would guess the device, and warn.
        is_nccl = dist.get_backend() == dist.Backend.NCCL
        dist.barrier(device_ids=[torch.cuda.current_device()] if is_nccl else None)


@functools.cache
def _get_global_gloo_group() -> Any:
    """All ranks, on a backend that sends from CPU memory."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def _world_size_of(group: Any) -> tuple[int, Any]:
    if get_world_size() == 1:
        return 1, group
    group = _get_global_gloo_group() if group is None else group
    return dist.get_world_size(group=group), group


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """Collect a picklable object from each process; every process gets the list in order of ranks."""
    size, group = _world_size_of(group)
    if size == 1:
        return [data]
    output: list[Any] = [None] * size
    dist.all_gather_object(output, data, group=group)
    return output


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Collect a picklable object from each process on rank ``dst``; the others get an empty list."""
    size, group = _world_size_of(group)
    if size == 1:
        return [data]
    output: list[Any] | None = [None] * size if dist.get_rank(group=group) == dst else None
    dist.gather_object(data, output, dst=dst, group=group)
    return output or []


def shared_random_seed() -> int:
    """One random number in [0, 2**31), the same on all processes, which must all call this."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Add up (or average) equal-shaped tensors over the processes; only the result of rank 0 is meaningful."""
    size, names = get_world_size(), sorted(input_dict)  # the same order everywhere
    if size == 1:
        return input_dict
    with torch.no_grad():
        values = torch.stack([*map(input_dict.__getitem__, names)])
        dist.reduce(values, dst=0)
        if average and is_main_process():
            values.div_(size)
        return dict(zip(names, values))
