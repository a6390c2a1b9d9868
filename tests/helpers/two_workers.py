"""The losses of two gloo workers beside those of one process with the joined batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import d2_ext
from d2_ext.engine.parallel import leave_process_group

import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.forked import start_processes
from helpers.point_scenes import image, tiny_cfg


def batch() -> list[dict[str, Any]]:
    """Two images, the second without boxes, the same in every process."""
    torch.manual_seed(3)
    return [image([[10.0, 12.0, 50.0, 60.0], [70.0, 20.0, 120.0, 90.0]], [0, 3]), image([], [])]


def build(name: str) -> nn.Module:
    """The model, the same in every process."""
    torch.manual_seed(5)
    return build_model(tiny_cfg(name))


def step(model: nn.Module, images: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of one batch."""
    with EventStorage():
        losses = model(images)
    sum(losses.values()).backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {key: value.item() for key, value in losses.items()}, gradients


def work(rank: int, name: str, rendezvous: str, folder: str) -> None:
    """One of two workers: an image each."""
    torch.set_num_threads(1)
    assert d2_ext.__version__
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    assert comm.get_world_size() == 2
    losses, gradients = step(DistributedDataParallel(build(name)), [batch()[rank]])
    torch.save({"losses": losses, "gradients": gradients}, f"{folder}/{rank}.pt")
    leave_process_group()


def compared(name: str, folder: Path) -> dict[str, Any]:
    """Losses of both ways, and how far their gradients differ."""
    start_processes(work, (name, f"{folder}/{name}", str(folder)), nprocs=2)
    ranks = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]
    joined, gradients = step(build(name), batch())
    # A worker's normalizer is the mean number of positives of a worker, half that of the joined batch; the mean over
    # workers, which data parallel training takes of the gradients, makes up for it.
    differences = {key: (gradients[key] - ranks[0]["gradients"][key]).abs().max().item() for key in gradients}
    return {"joined": joined, "ranks": [rank["losses"] for rank in ranks], "gradient_differences": differences}
