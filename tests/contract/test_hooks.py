"""Hooks: iteration numbers and file names by hand; on either implementation of Detectron2."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import JSONWriter
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn


def _trainer(lr: float = 0.5) -> SimpleTrainer:
    """The loss is the only weight, which starts at 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return SimpleTrainer(_Sum(model), itertools.repeat(torch.ones(1, 1)), torch.optim.SGD(model.parameters(), lr))


class _Sum(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).sum()


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
    # Of groups of one parameter, the commonest rate counts.
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


def test_a_failed_training_is_not_evaluated_and_results_must_be_numbers() -> None:
    trainer = _trainer()
    trainer.data_loader = iter([torch.ones(1)])
    trainer.register_hooks([hooks.EvalHook(0, lambda: pytest.fail("evaluated"))])
    with pytest.raises(StopIteration):
        trainer.train(0, 3)
    trainer = _trainer()
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"bbox": {"AP": "high"}})])
    with pytest.raises(ValueError, match="bbox/AP"):
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
def test_the_best_checkpoint_is_kept(
    tmp_path: Path, d2_log: pytest.LogCaptureFixture, mode: str, metrics: list[float], saved: list[int]
) -> None:
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
    trainer = _trainer()
    trainer.register_hooks([hooks.BestCheckpointer(0, DetectionCheckpointer(trainer.model, str(tmp_path)), "AP")])
    d2_log.clear()
    trainer.train(0, 1)  # a missing metric saves nothing
    assert list(tmp_path.iterdir()) == []
    assert [(r.levelname, "AP" in r.getMessage()) for r in d2_log.records[1:]] == [("WARNING", True)]


def test_the_writer_hook_writes_at_periods_at_the_end_and_what_came_after(tmp_path: Path) -> None:
    trainer = _trainer()
    writer = JSONWriter(str(tmp_path / "m.json"), window_size=1)
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"AP": 1.0}), hooks.PeriodicWriter([writer], period=2)])
    trainer.train(0, 5)
    lines = [json.loads(line) for line in (tmp_path / "m.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 3, 4, 5]
    assert lines[-1] == {"AP": 1.0, "iteration": 5}
