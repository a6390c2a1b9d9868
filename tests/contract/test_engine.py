"""The training loop and the set-up of scripts; on either implementation of Detectron2."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.utils.events import EventStorage
from torch import nn


class _Net(nn.Module):
    """One weight w, losses w * x and (if asked for) a constant."""

    def __init__(self, second_loss: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.second_loss = second_loss

    def forward(self, x: torch.Tensor) -> Any:
        loss = (self.w * x).sum()
        return {"loss_a": loss, "loss_b": 0 * loss + 2.0} if self.second_loss else {"loss": loss}


def _ones() -> Iterator[torch.Tensor]:
    while True:
        yield torch.ones(1)


def _trainer(model: nn.Module | None = None, lr: float = 0.5, **options: Any) -> SimpleTrainer:
    model = model or _Net()
    return SimpleTrainer(model, _ones(), torch.optim.SGD(model.parameters(), lr), **options)


class _Recorder(HookBase):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("before_", "after_")):
            return lambda: self.calls.append((name, self.trainer.iter))
        return super().__getattribute__(name)


def test_hooks_are_called_in_the_order_of_the_loop() -> None:
    trainer, recorder = _trainer(), _Recorder()
    trainer.register_hooks([None, recorder])
    trainer.train(3, 5)
    steps = [(name, i) for i in (3, 4) for name in ("before_step", "after_backward", "after_step")]
    assert recorder.calls == [("before_train", 3), *steps, ("after_train", 5)]
    assert (trainer.start_iter, trainer.max_iter, trainer.storage.iter) == (3, 5, 5)


def test_after_an_error_the_hooks_are_told_and_the_iteration_stays(d2_log: pytest.LogCaptureFixture) -> None:
    trainer, recorder = _trainer(), _Recorder()
    trainer.data_loader = iter([torch.ones(1)])  # one batch for two iterations
    trainer.register_hooks([recorder])
    with pytest.raises(StopIteration):
        trainer.train(0, 2)
    assert recorder.calls[-1] == ("after_train", 1)
    assert "Exception during training:" in d2_log.text


@pytest.mark.parametrize("clears_early", [False, True])
def test_a_step_is_forward_backward_and_update(clears_early: bool) -> None:
    model = _Net()
    trainer = _trainer(model, lr=0.25, zero_grad_before_forward=clears_early)
    trainer.train(0, 2)
    assert model.w.item() == 0.5  # gradient 1 in both steps
    model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_a_single_loss_is_stored_as_the_total_and_several_with_their_sum() -> None:
    class Bare(_Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.w * x).sum()

    for model, expected in (
        (_Net(), {"total_loss": 1.0}),
        (Bare(), {"total_loss": 1.0}),
        (_Net(second_loss=True), {"total_loss": 3.0, "loss_a": 1.0, "loss_b": 2.0}),
    ):
        trainer = _trainer(model)
        trainer.train(0, 1)
        latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
        assert latest.pop("data_time") == latest.pop("rank_data_time")
        assert latest == expected


def test_an_infinite_loss_stops_the_training_and_names_the_iteration() -> None:
    trainer = _trainer()
    trainer.data_loader = iter([torch.ones(1), torch.full((1,), math.nan)])
    with pytest.raises(FloatingPointError, match=r"iteration\W1\b"):
        trainer.train(0, 2)


@pytest.mark.parametrize("is_async", [False, True])
def test_metrics_can_be_gathered_less_often_and_in_a_thread(is_async: bool) -> None:
    trainer = _trainer(gather_metric_period=2, async_write_metrics=is_async)
    trainer.train(0, 5)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [1, 3]


def test_write_metrics_puts_the_prefix_before_the_total() -> None:
    with EventStorage() as storage:
        SimpleTrainer.write_metrics({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, 0.5, 4, prefix="x/")
    assert storage.latest() == {
        "rank_data_time": (0.5, 4), "data_time": (0.5, 4), "x/total_loss": (3.0, 4), "a": (1.0, 4), "b": (2.0, 4)
    }  # fmt: skip


def test_the_data_loader_is_iterated_lazily_and_can_be_replaced() -> None:
    trainer = _trainer()
    trainer.data_loader = None
    trainer.reset_data_loader(lambda: iter([torch.zeros(1)]))
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"] == (0.0, 0)
    trainer.reset_data_loader(_ones)
    trainer.train(1, 2)
    assert trainer.storage.latest()["total_loss"] == (1.0, 1)


class _Stateful(HookBase):
    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def test_state_is_iteration_optimizer_and_the_first_hook_of_each_class(d2_log: pytest.LogCaptureFixture) -> None:
    trainer = _trainer()
    first, second = _Stateful(1), _Stateful(2)
    trainer.register_hooks([_Recorder(), first, second])
    trainer.iter = 7
    state = trainer.state_dict()
    assert sorted(state) == ["hooks", "iteration", "optimizer"]
    assert (state["iteration"], state["hooks"]) == (7, {"_Stateful": {"value": 1}})
    assert "hooks" not in _trainer().state_dict()
    trainer.load_state_dict({**state, "iteration": 4, "hooks": {"_Stateful": {"value": 9}, "Gone": {}}})
    assert (trainer.iter, first.value, second.value) == (4, 9, 2)
    assert "'Gone'" in d2_log.text


def test_amp_is_refused_without_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    model = _Net()
    trainer = AMPTrainer(model, _ones(), torch.optim.SGD(model.parameters(), 0.1))
    assert sorted(trainer.state_dict()) == ["grad_scaler", "iteration", "optimizer"]
    with pytest.raises(AssertionError, match="CUDA"):
        trainer.train(0, 1)


def test_the_parser_knows_the_common_arguments() -> None:
    args = default_argument_parser().parse_args([])
    assert vars(args) == {
        "config_file": "", "resume": False, "eval_only": False, "num_gpus": 1, "num_machines": 1, "machine_rank": 0,
        "dist_url": args.dist_url, "opts": [],
    }  # fmt: skip
    assert 49152 <= int(args.dist_url.removeprefix("tcp://127.0.0.1:")) < 65536
    line = ["--config-file", "a.yaml", "--resume", "--num-gpus", "2", "SOLVER.BASE_LR", "0.1"]
    args = default_argument_parser().parse_args(line)
    assert (args.config_file, args.resume, args.num_gpus) == ("a.yaml", True, 2)
    assert args.opts == ["SOLVER.BASE_LR", "0.1"]


def test_set_up_writes_config_and_log_and_seeds(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / "out"), 11
    config_file = tmp_path / "in.yaml"
    config_file.write_text("VERSION: 2\n")
    default_setup(cfg, argparse.Namespace(config_file=str(config_file), eval_only=True))
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())
    assert CfgNode.load_yaml_with_base(str(tmp_path / "out" / "config.yaml"))["SEED"] == 11
    log = (tmp_path / "out" / "log.txt").read_text()
    for text in ("Rank of current process: 0. World size: 1", "Environment info:", "Command line arguments:",
                 "Contents of args.config_file=", "Full config saved to"):  # fmt: skip
        assert text in log


def test_the_default_writers_are_three_and_one_process_needs_no_wrapper(tmp_path: Path) -> None:
    names = [type(writer).__name__ for writer in default_writers(str(tmp_path / "new"), 10)]
    assert names == ["CommonMetricPrinter", "JSONWriter", "TensorboardXWriter"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]
    model = _Net()
    assert create_ddp_model(model, broadcast_buffers=False) is model


def test_scaling_to_more_processes() -> None:
    cfg = get_cfg()
    cfg.SOLVER.merge_from_list(
        ["REFERENCE_WORLD_SIZE", 8, "IMS_PER_BATCH", 16, "BASE_LR", 0.1, "MAX_ITER", 5000, "STEPS", (4000, 4501),
         "WARMUP_ITERS", 1000, "CHECKPOINT_PERIOD", 999]
    )  # fmt: skip
    cfg.TEST.EVAL_PERIOD = 500
    cfg.freeze()
    solver = DefaultTrainer.auto_scale_workers(cfg, 16)
    assert solver.is_frozen()
    assert (solver.SOLVER.IMS_PER_BATCH, solver.SOLVER.BASE_LR, solver.SOLVER.MAX_ITER) == (32, 0.2, 2500)
    assert (solver.SOLVER.STEPS, solver.SOLVER.WARMUP_ITERS) == ((2000, 2250), 500)  # 2250.5 rounds to even
    assert (solver.SOLVER.CHECKPOINT_PERIOD, solver.TEST.EVAL_PERIOD) == (500, 250)  # 499.5 rounds to even
    assert solver.SOLVER.REFERENCE_WORLD_SIZE == 16
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg
    assert DefaultTrainer.auto_scale_workers(get_cfg(), 3).SOLVER.IMS_PER_BATCH == 16
