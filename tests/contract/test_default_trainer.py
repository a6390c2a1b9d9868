"""The default trainer: hooks, files, resuming, evaluation; on either implementation of Detectron2."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn


@META_ARCH_REGISTRY.register()
class ContractLinear(nn.Module):
    """Loss: mean of a linear map with a batch norm, so that there are two parameter groups."""

    @configurable
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {}

    def forward(self, x: torch.Tensor) -> dict:
        out = self.fc(self.norm(x))
        return {"loss_mean": out.mean(), "loss_square": (out**2).mean()} if self.training else out


class _Evaluator(DatasetEvaluator):
    def reset(self) -> None:
        self.seen = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.seen += len(inputs)

    def evaluate(self) -> dict:
        return {"task": {"seen": float(self.seen)}}


class _Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        return [torch.randn(8, 4, generator=generator) for _ in range(20)]

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[torch.Tensor]:
        return [torch.zeros(2, 4)] * 3

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return _Evaluator()


class _CountsBackward(HookBase):
    calls = 0

    def after_backward(self) -> None:
        self.calls += 1


def _cfg(folder: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = "cpu", "ContractLinear", str(folder)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 0.01, 6, 3
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = (5,), 2
    cfg.DATASETS.TEST = ("contract_a",)
    return cfg


def test_the_default_trainer_builds_hooks_in_order_and_forwards_attributes(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path)
    trainer = _Trainer(cfg)
    assert [type(hook).__name__ for hook in trainer._hooks] == [
        "IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"
    ]  # fmt: skip
    assert type(trainer._trainer) is SimpleTrainer
    assert trainer.model is trainer._trainer.model
    assert trainer.optimizer is trainer._trainer.optimizer
    assert trainer.data_loader is trainer._trainer.data_loader
    replacement = ContractLinear()
    trainer.model = replacement
    assert trainer._trainer.model is replacement
    assert (trainer.start_iter, trainer.max_iter, trainer.cfg) == (0, 6, cfg)
    assert trainer.checkpointer.save_dir == str(tmp_path)
    trainer.resume_or_load(resume=True)  # there is no checkpoint
    assert trainer.start_iter == 0
    assert logging.getLogger("detectron2").isEnabledFor(logging.INFO)


def test_a_run_writes_its_files_and_a_resumed_run_ends_at_the_same_weights(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path / "whole")
    cfg.TEST.EVAL_PERIOD = 4
    torch.manual_seed(1)
    whole = _Trainer(cfg)
    outer = _CountsBackward()
    whole.register_hooks([outer])
    whole.resume_or_load(resume=False)
    assert whole.train() is None
    files = {path.name for path in (tmp_path / "whole").iterdir() if not path.name.startswith("events.")}
    assert files == {
        "last_checkpoint", "metrics.json", "model_0000002.pth", "model_0000005.pth", "model_final.pth"
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [5, 3, 6]  # scalars of 5, of the evaluation at 3, of the last one
    assert set(lines[0]) == {
        "total_loss", "loss_mean", "loss_square", "lr", "time", "data_time", "rank_data_time", "eta_seconds",
        "iteration",
    }  # fmt: skip
    assert lines[1] == {"iteration": 3, "task/seen": 6.0}
    assert outer.calls == 0  # the step is run by the inner trainer, which has no hooks

    state = torch.load(tmp_path / "whole" / "model_0000002.pth")
    assert sorted(state) == ["iteration", "model", "trainer"]
    assert sorted(state["trainer"]) == ["_trainer", "hooks", "iteration"]
    assert state["trainer"]["hooks"] == {"LRScheduler": {"base_lrs": [0.01, 0.01], "last_epoch": 3}}
    assert sorted(state["trainer"]["_trainer"]) == ["iteration", "optimizer"]

    part = tmp_path / "part"
    part.mkdir()
    (part / "model_0000002.pth").write_bytes((tmp_path / "whole" / "model_0000002.pth").read_bytes())
    (part / "last_checkpoint").write_text("model_0000002.pth")
    torch.manual_seed(2)
    resumed = _Trainer(_cfg(part))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.data_loader = _Trainer.build_train_loader(cfg)[3:]
    resumed.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_one_data_set_gives_bare_results_and_several_give_them_by_name(
    tmp_path: Path, d2_log: pytest.LogCaptureFixture
) -> None:
    cfg = _cfg(tmp_path)
    model = ContractLinear().eval()
    assert _Trainer.test(cfg, model) == {"task": {"seen": 6.0}}
    cfg.DATASETS.TEST = ("contract_a", "contract_b")
    results = _Trainer.test(cfg, model, [_Evaluator(), _Evaluator()])
    assert dict(results) == {name: {"task": {"seen": 6.0}} for name in ("contract_a", "contract_b")}
    with pytest.raises(AssertionError, match="2"):
        _Trainer.test(cfg, model, _Evaluator())

    class Plain(_Trainer):
        build_evaluator = DefaultTrainer.build_evaluator

    assert Plain.test(_cfg(tmp_path), model) == {}
    assert any(record.levelname == "WARNING" for record in d2_log.records)


def test_expected_results_are_verified_and_returned(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path)
    cfg.TEST.EXPECTED_RESULTS = [["task", "seen", 6.0, 0.1]]
    assert _Trainer(cfg).train() == {"task": {"seen": 6.0}}
    cfg.TEST.EXPECTED_RESULTS = [["task", "seen", 7.0, 0.1]]
    with pytest.raises(SystemExit):
        _Trainer(cfg).train()
