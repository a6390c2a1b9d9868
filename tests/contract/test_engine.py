"""The loop, its hooks and the default trainer: orders, iteration numbers and file names by hand."""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage, JSONWriter
from fvcore.common.param_scheduler import LinearParamScheduler
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

    def _note(self, name: str) -> None:
        self.calls.append((name, self.trainer.iter))

    def before_train(self) -> None:
        self._note("before_train")

    def after_train(self) -> None:
        self._note("after_train")

    def before_step(self) -> None:
        self._note("before_step")

    def after_backward(self) -> None:
        self._note("after_backward")

    def after_step(self) -> None:
        self._note("after_step")


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


def test_a_step_is_forward_backward_and_update() -> None:
    model = _Net()
    _trainer(model, lr=0.25).train(0, 2)
    assert model.w.item() == 0.5  # gradient 1 in both steps


def test_gradients_are_cleared_once_a_step_either_way() -> None:
    model = _Net()
    _trainer(model, lr=0.25, zero_grad_before_forward=True).train(0, 2)
    assert model.w.item() == 0.5


def test_a_model_in_evaluation_mode_is_refused() -> None:
    trainer = _trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="model was changed to eval mode"):
        trainer.train(0, 1)


def test_a_single_loss_is_stored_as_the_total_only() -> None:
    trainer = _trainer()
    trainer.train(0, 2)
    latest = trainer.storage.latest()
    assert set(latest) == {"total_loss", "data_time", "rank_data_time"}
    assert latest["total_loss"] == (0.5, 1)


def test_several_losses_are_stored_with_their_sum() -> None:
    trainer = _trainer(_Net(second_loss=True))
    trainer.train(0, 1)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items() if "loss" in name}
    assert latest == {"total_loss": 3.0, "loss_a": 1.0, "loss_b": 2.0}


def test_a_loss_that_is_a_tensor_is_the_total() -> None:
    class Bare(_Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.w * x).sum()

    trainer = _trainer(Bare())
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"] == (1.0, 0)


def test_an_infinite_loss_stops_the_training_and_names_the_iteration() -> None:
    trainer = _trainer()
    trainer.data_loader = iter([torch.ones(1), torch.full((1,), math.nan)])
    with pytest.raises(FloatingPointError, match="iteration=1"):
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


def test_state_is_iteration_hooks_by_class_and_optimizer() -> None:
    trainer = _trainer()
    trainer.register_hooks([_Recorder(), _Stateful(1), _Stateful(2)])
    trainer.iter = 7
    state = trainer.state_dict()
    assert sorted(state) == ["hooks", "iteration", "optimizer"]
    assert (state["iteration"], state["hooks"]) == (7, {"_Stateful": {"value": 1}})
    assert "hooks" not in _trainer().state_dict()


def test_a_state_is_loaded_into_the_first_hook_of_the_class(d2_log: pytest.LogCaptureFixture) -> None:
    trainer = _trainer()
    first, second = _Stateful(0), _Stateful(0)
    trainer.register_hooks([first, second])
    optimizer = trainer.optimizer.state_dict()
    state = {"iteration": 4, "hooks": {"_Stateful": {"value": 9}, "Gone": {}}, "optimizer": optimizer}
    trainer.load_state_dict(state)
    assert (trainer.iter, first.value, second.value) == (4, 9, 0)
    assert "Cannot find the hook 'Gone'" in d2_log.text


def test_amp_is_refused_without_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    model = _Net()
    trainer = AMPTrainer(model, _ones(), torch.optim.SGD(model.parameters(), 0.1))
    assert sorted(trainer.state_dict()) == ["grad_scaler", "iteration", "optimizer"]
    with pytest.raises(AssertionError, match="CUDA is required"):
        trainer.train(0, 1)


# ---------------------------------------------------------------------------------------------------------- hooks


def test_callbacks_get_the_trainer() -> None:
    seen: list[tuple[str, int]] = []
    names = ("before_train", "before_step", "after_step", "after_train")
    trainer = _trainer()
    trainer.register_hooks([hooks.CallbackHook(**{n: lambda t, n=n: seen.append((n, t.iter)) for n in names})])
    trainer.train(0, 1)
    assert seen == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_the_timer_leaves_out_the_warm_up(d2_log: pytest.LogCaptureFixture) -> None:
    trainer = _trainer()
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=3)])
    trainer.train(10, 17)
    assert [iteration for _, iteration in trainer.storage.history("time").values()] == [12, 13, 14, 15, 16]
    assert "Overall training speed: 5 iterations in 0:00:00 (" in d2_log.text  # 17 + 1 - 10 - 3
    assert "Total training time: 0:00:00 (0:00:00 on hooks)" in d2_log.text


def test_the_rate_is_stored_before_it_changes_and_of_the_largest_group() -> None:
    model = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(3)])
    optimizer = torch.optim.SGD([{"params": [model[0]], "lr": 9.0}, {"params": [model[1], model[2]], "lr": 1.0}])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    trainer = _trainer()
    trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler)])
    trainer.train(0, 4)
    assert [rate for rate, _ in trainer.storage.history("lr").values()] == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert trainer.storage.smoothing_hints()["lr"] is False
    assert scheduler.last_epoch == 4


def test_of_groups_of_one_the_commonest_rate_is_shown() -> None:
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (1.0, 2.0, 2.0))]
    assert hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(groups)) == 1


def test_a_function_of_the_position_multiplies_the_base_rates() -> None:
    trainer = _trainer(lr=8.0)
    trainer.register_hooks([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))])
    trainer.train(0, 4)
    assert [rate for rate, _ in trainer.storage.history("lr").values()] == pytest.approx([8.0, 6.0, 4.0, 2.0])
    assert trainer.state_dict()["hooks"] == {"LRScheduler": {"base_lrs": [8.0], "last_epoch": 4}}


@pytest.mark.parametrize(
    ("period", "max_iter", "after_train", "expected"),
    [(3, 6, True, [2, 6]), (3, 7, True, [2, 5, 7]), (0, 4, True, [4]), (3, 6, False, [2])],
)
def test_evaluations_come_after_every_period_and_at_the_end(
    period: int, max_iter: int, after_train: bool, expected: list[int]
) -> None:
    trainer = _trainer()
    results = {"bbox": {"AP": 1.5, "sub": {"x": 2}}, "plain": 3.0}
    trainer.register_hooks([hooks.EvalHook(period, lambda: results, after_train)])
    trainer.train(0, max_iter)
    for name, value in {"bbox/AP": 1.5, "bbox/sub/x": 2.0, "plain": 3.0}.items():
        assert trainer.storage.history(name).values() == [(value, iteration) for iteration in expected]


def test_a_failed_training_is_not_evaluated() -> None:
    trainer = _trainer()
    trainer.data_loader = iter([torch.ones(1)])
    trainer.register_hooks([hooks.EvalHook(0, lambda: pytest.fail("evaluated"))])
    with pytest.raises(StopIteration):
        trainer.train(0, 3)


def test_results_that_are_no_numbers_are_refused() -> None:
    trainer = _trainer()
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"bbox": {"AP": "high"}})])
    with pytest.raises(ValueError, match="bbox/AP: high"):
        trainer.train(0, 1)


def test_checkpoints_are_named_by_the_finished_iteration(tmp_path: Path) -> None:
    trainer = _trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=1)])
    trainer.train(0, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000003.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 4


@pytest.mark.parametrize(
    ("mode", "metrics", "saved"),
    [("max", [0.3, 0.2, 0.5], [1, 6]), ("min", [math.nan, 0.8, 0.9], [3]), ("max", [math.inf, 0.1, 0.2], [3, 6])],
)
def test_the_best_checkpoint_is_kept(tmp_path: Path, mode: str, metrics: list[float], saved: list[int]) -> None:
    class Spy(DetectionCheckpointer):
        def save(self, name: str, **kwargs: Any) -> None:
            assert name == "model_best"
            iterations.append(kwargs["iteration"])

    iterations: list[int] = []
    values = iter(metrics)
    trainer = _trainer()
    best = hooks.BestCheckpointer(2, Spy(trainer.model, str(tmp_path)), "metric", mode)
    trainer.register_hooks([hooks.EvalHook(2, lambda: {"metric": next(values)}), best])
    trainer.train(0, 6)
    assert iterations == saved
    assert best.best_iter == saved[-1]


def test_a_missing_metric_saves_nothing(tmp_path: Path, d2_log: pytest.LogCaptureFixture) -> None:
    trainer = _trainer()
    trainer.register_hooks([hooks.BestCheckpointer(0, DetectionCheckpointer(trainer.model, str(tmp_path)), "AP")])
    trainer.train(0, 1)
    assert list(tmp_path.iterdir()) == []
    assert "Given val metric AP does not seem to be computed" in d2_log.text


def test_the_writer_hook_writes_at_periods_at_the_end_and_what_came_after(tmp_path: Path) -> None:
    trainer = _trainer()
    writer = JSONWriter(str(tmp_path / "m.json"), window_size=1)
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"AP": 1.0}), hooks.PeriodicWriter([writer], period=2)])
    trainer.train(0, 5)
    lines = [json.loads(line) for line in (tmp_path / "m.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 3, 4, 5]
    assert lines[-1] == {"AP": 1.0, "iteration": 5}


def test_memory_is_not_logged_without_cuda() -> None:
    trainer = _trainer()
    trainer.register_hooks([hooks.TorchMemoryStats(period=1)])
    trainer.train(0, 1)


def test_precise_statistics_are_the_mean_over_the_batches() -> None:
    model = nn.BatchNorm1d(1)
    data = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]  # means 1 and 5
    hook = hooks.PreciseBN(0, model, data, 2)
    hook.update_stats()
    assert model.running_mean.item() == pytest.approx(3.0)
    # E[x^2] - E[x]^2 over all 4 values, with n / (n - 1) of the batch: batch variances 2, squared means 1 and 25
    assert model.running_var.item() > 2.0


def test_precise_statistics_are_off_without_batch_norm(d2_log: pytest.LogCaptureFixture) -> None:
    trainer = _trainer()
    trainer.register_hooks([hooks.PreciseBN(1, nn.Linear(1, 1), [], 2)])
    trainer.train(0, 1)
    assert "PreciseBN is disabled" in d2_log.text


# ------------------------------------------------------------------------------------------------------- defaults


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


def test_the_default_writers_are_three(tmp_path: Path) -> None:
    names = [type(writer).__name__ for writer in default_writers(str(tmp_path / "new"), 10)]
    assert names == ["CommonMetricPrinter", "JSONWriter", "TensorboardXWriter"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]


def test_one_process_needs_no_wrapper() -> None:
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


def _cfg(folder: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = "cpu", "ContractLinear", str(folder)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 0.01, 6, 3
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = (5,), 2
    cfg.DATASETS.TEST = ("contract_a",)
    return cfg


def test_the_default_trainer_builds_hooks_in_order_and_forwards_attributes(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path)
    cfg.TEST.PRECISE_BN.ENABLED = True
    trainer = _Trainer(cfg)
    assert [type(hook).__name__ for hook in trainer._hooks] == [
        "IterationTimer", "LRScheduler", "PreciseBN", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"
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


def test_a_run_writes_its_files_and_a_resumed_run_ends_at_the_same_weights(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path / "whole")
    cfg.TEST.EVAL_PERIOD = 4
    torch.manual_seed(1)
    whole = _Trainer(cfg)
    recorder = _Recorder()
    whole.register_hooks([recorder])
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
    assert not [call for call in recorder.calls if call[0] == "after_backward"]  # the inner trainer has no hooks

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


def test_resume_without_a_checkpoint_starts_at_zero(tmp_path: Path) -> None:
    trainer = _Trainer(_cfg(tmp_path))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


def test_one_data_set_gives_bare_results_and_several_give_them_by_name(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path)
    model = ContractLinear().eval()
    assert _Trainer.test(cfg, model) == {"task": {"seen": 6.0}}
    cfg.DATASETS.TEST = ("contract_a", "contract_b")
    results = _Trainer.test(cfg, model, [_Evaluator(), _Evaluator()])
    assert dict(results) == {name: {"task": {"seen": 6.0}} for name in ("contract_a", "contract_b")}
    with pytest.raises(AssertionError, match="2 != 1"):
        _Trainer.test(cfg, model, _Evaluator())


def test_without_an_evaluator_a_data_set_is_skipped_with_a_warning(
    tmp_path: Path, d2_log: pytest.LogCaptureFixture
) -> None:
    class Plain(_Trainer):
        build_evaluator = DefaultTrainer.build_evaluator

    assert Plain.test(_cfg(tmp_path), ContractLinear()) == {}
    assert "No evaluator found" in d2_log.text


def test_expected_results_are_verified_and_returned(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path)
    cfg.TEST.EXPECTED_RESULTS = [["task", "seen", 6.0, 0.1]]
    assert _Trainer(cfg).train() == {"task": {"seen": 6.0}}
    cfg.TEST.EXPECTED_RESULTS = [["task", "seen", 7.0, 0.1]]
    with pytest.raises(SystemExit):
        _Trainer(cfg).train()


def test_building_a_trainer_sets_up_the_logger(tmp_path: Path) -> None:
    _Trainer(_cfg(tmp_path))
    assert logging.getLogger("detectron2").isEnabledFor(logging.INFO)
