"""Training in two processes without a GPU, which the real Detectron2 cannot do.

Run as a script, the file starts the two processes: a function of a test module cannot be imported by a new process
where another package is called ``tests``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import d2_ext  # noqa: F401 (makes detectron2 importable)

import pytest
import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.engine import DefaultTrainer, create_ddp_model, launch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.forked import run_script


@META_ARCH_REGISTRY.register()
class StandinSlope(nn.Module):
    """Loss: the weight times the input, so the gradient is the input."""

    @configurable
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), float(comm.get_rank() + 1)))  # the wrapper makes them equal

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {}

    def forward(self, x: torch.Tensor) -> Any:
        return {"loss_x": self.weight.sum() * x, "loss_c": 0 * self.weight.sum() + 1.0} if self.training else []


class _Evaluator(DatasetEvaluator):
    def evaluate(self) -> dict | None:
        ranks = comm.gather(comm.get_rank())
        return {"task": {"ranks": float(sum(ranks))}} if comm.is_main_process() else None


class _Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[torch.Tensor]:
        return iter([torch.tensor(1.0 + 2.0 * comm.get_rank())] * 9)  # 1 on rank 0, 3 on rank 1

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[torch.Tensor]:
        return [torch.zeros(1)]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return _Evaluator()


def _train(folder: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = "cpu", "StandinSlope", folder
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 0.25, 0.0, 0.0
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 2, 0, ()
    cfg.DATASETS.TEST = ("none",)
    trainer = _Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    seen = {
        "is_wrapped": isinstance(trainer.model, DistributedDataParallel),
        "device_ids": trainer.model.device_ids,
        "weight": trainer.model.module.weight.item(),
        "hooks": [type(hook).__name__ for hook in trainer._hooks],
        "start": trainer.start_iter,
        "fp16": type(create_ddp_model(nn.Linear(1, 1), fp16_compression=True)).__name__,
    }
    Path(folder, f"rank{comm.get_rank()}.json").write_text(json.dumps(seen))


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("with GPUs, launch starts one process for each of them")
    done = run_script(__file__, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    # from rank 0's weight 1, two steps of 0.25 times the mean gradient (1 + 3) / 2
    assert first["weight"] == second["weight"] == 0.0
    assert first["is_wrapped"]
    assert first["device_ids"] is None
    assert first["hooks"] == ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"]
    assert second["hooks"] == ["IterationTimer", "LRScheduler", "EvalHook"]  # only the main process writes
    assert first["fp16"] == "DistributedDataParallel"
    assert sorted(torch.load(tmp_path / "model_final.pth")["model"]) == ["weight"]  # no prefix of the wrapper
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines[-1] == {"iteration": 2, "task/ranks": 1.0}
    # mean over the processes of the last two losses: weights 1, 0.5 times 1 and 3, plus 1; their median
    assert lines[0]["total_loss"] == pytest.approx(((2 + 1) + (1 + 1)) / 2)


if __name__ == "__main__":
    launch(_train, 2, dist_url="auto", args=(sys.argv[1],))
