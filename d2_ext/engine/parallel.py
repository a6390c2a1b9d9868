"""Data parallel training over processes, with or without GPUs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def wrap_data_parallel(model: nn.Module) -> nn.Module:
    """Wrap a model for training in several processes; a single process gets the model itself.

    Detectron2's own ``create_ddp_model`` names a device also for a model on the CPU, which DDP refuses, so that
    several processes over gloo never worked there.

    Args:
        model: on the device it is to be trained on.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


def join_process_group(local_rank: int, local_size: int) -> None:
    """Make this process one of several that something else has started, over NCCL with GPUs and over gloo without.

    Args:
        local_rank: number of this process, and of its GPU, on its machine.
        local_size: processes on each machine.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")  # the environment says where they meet
    comm.create_local_process_group(local_size)
    comm.synchronize()


def leave_process_group(*, wait: bool = True) -> None:
    """Leave the group of all processes, if there is one: the last thing that a process of several does.

    Without it the communication's own threads may still run when the interpreter ends, which aborts the process
    (SIGABRT) although its work is done.

    Args:
        wait: for all processes; not after an error, since the others may never come.
    """
    if wait:
        comm.synchronize()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
