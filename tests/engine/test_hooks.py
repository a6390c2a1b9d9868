"""Averaged weights, early stopping, the guard of the losses and accumulated gradients, on numbers done by hand."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

from d2_ext.engine import trainer
from d2_ext.engine.hooks import (
    AveragedWeights,
    BestWeights,
    EarlyStop,
    EarlyStopped,
    Evaluation,
    ImagesAfterTraining,
    LossNormalizers,
    WeightsFile,
)
from d2_ext.engine.loss_guard import MAX_SKIPPED_IN_A_ROW, LossGuard
from d2_ext.engine.precision import Precision
from d2_ext.engine.step import StepTrainer
from d2_ext.errors import CheckpointError, ConfigError, TrainingError

import pytest
import torch
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.fault_figures import report


class _Loop(TrainerBase):
    """Steps that do nothing but what they are told."""

    def __init__(self, hooks: list[HookBase], step: Any = lambda iteration: None) -> None:
        super().__init__()
        self._step = step
        self.register_hooks(hooks)

    def run_step(self) -> None:
        self._step(self.iter)


# Averaged weights


def _averaged(decay: float, warmup: int, steps: int) -> tuple[nn.Linear, AveragedWeights]:
    """A weight that is 0 and then 1, 2, 3, ... after each step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = AveragedWeights(model, decay, warmup)
    _Loop([average], lambda i: nn.init.constant_(model.weight, i + 1)).train(0, steps)
    return model, average


def test_the_average_is_the_sum_with_falling_weights() -> None:
    model, average = _averaged(0.5, 0, 3)
    with average.applied():
        assert model.weight.item() == 0.5 * (0.5 * (0.5 * 0 + 0.5 * 1) + 0.5 * 2) + 0.5 * 3
    assert model.weight.item() == 3


def test_the_decay_warms_up() -> None:
    model, average = _averaged(0.5, 2, 1)
    decay = 0.5 * (1 - math.exp(-1 / 2))
    assert average.decay_at(1) == pytest.approx(decay)
    with average.applied():
        assert model.weight.item() == pytest.approx(1 - decay)


def test_the_average_goes_on_from_its_state() -> None:
    _, first = _averaged(0.5, 2, 2)
    model = nn.Linear(1, 1, bias=False)
    second = AveragedWeights(model, 0.5, 2)
    second.load_state_dict(first.state_dict())
    _Loop([second], lambda i: nn.init.constant_(model.weight, 3)).train(2, 3)
    _, whole = _averaged(0.5, 2, 3)
    assert torch.equal(second.state_dict()["average"]["weight"], whole.state_dict()["average"]["weight"])


def test_an_error_in_the_evaluation_gives_the_weights_back() -> None:
    model, average = _averaged(0.5, 0, 3)
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert model.weight.item() == 3


# The best weights, and early stopping


class _Metrics(HookBase):
    def __init__(self, values: list[float], period: int) -> None:
        self.values, self.period = values, period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self.trainer.storage.put_scalar("bbox/AP", self.values[self.trainer.iter // self.period])


def _early(values: list[float], patience: int, mode: str = "max", **more: Any) -> tuple[_Loop, EarlyStop, list[int]]:
    saved: list[int] = []
    stop = EarlyStop(2, "bbox/AP", mode, patience, lambda iteration: saved.append(iteration))
    return _Loop([_Metrics(values, 2), stop]), stop, saved


@pytest.mark.parametrize(
    ("values", "mode", "last"),
    [([1, 3, 2, 3, 9, 9], "max", 7), ([5, 4, 4, 4, 1, 1], "min", 7), ([math.nan, math.nan, 1, 2, 3, 4], "max", 3)],
)
def test_training_stops_after_two_evaluations_that_are_no_better(values: list[float], mode: str, last: int) -> None:
    loop, _, saved = _early(values, 2, mode)
    with pytest.raises(EarlyStopped):
        loop.train(0, 12)
    assert saved == [last]
    assert loop.iter == loop.max_iter == last + 1  # to the other hooks, it has ended as planned


def test_a_stopped_run_stays_stopped_when_resumed_and_goes_on_with_more_patience() -> None:
    loop, stop, _ = _early([3, 2, 2, 2], 2)
    with pytest.raises(EarlyStopped):
        loop.train(0, 8)
    again, second, _ = _early([3, 2, 2, 2], 2)
    second.load_state_dict(stop.state_dict())
    with pytest.raises(EarlyStopped):
        again.train(6, 8)
    patient, third, _ = _early([3, 2, 2, 2], 3)
    third.load_state_dict(stop.state_dict())
    patient.train(6, 7)
    assert patient.iter == 7


def test_the_best_weights_are_kept_over_a_resumption(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)

    def hook() -> BestWeights:
        return BestWeights(2, WeightsFile(model, str(tmp_path), torch.no_grad), "bbox/AP")

    first, second = hook(), hook()
    _Loop([_Metrics([1, 5, 4, 4], 2), first], lambda i: nn.init.constant_(model.weight, i)).train(0, 6)
    second.load_state_dict(first.state_dict())
    _Loop([_Metrics([1, 5, 4, 4], 2), second], lambda i: nn.init.constant_(model.weight, i)).train(6, 8)
    content = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert content["model"]["weight"].item() == 3
    assert content["iteration"] == 3
    assert not (tmp_path / "last_checkpoint").exists()


@pytest.mark.parametrize("fails_at", [None, 3])
def test_a_run_that_failed_in_its_last_iteration_is_no_finished_one(fails_at: int | None, tmp_path: Path) -> None:
    done: list[str] = []

    def evaluate() -> dict[str, float]:
        done.append("evaluated")
        return {"bbox/AP": 1.0}

    def step(iteration: int) -> None:
        if iteration == fails_at:
            raise TrainingError("the loss is not finite")

    best = BestWeights(0, WeightsFile(nn.Linear(1, 1), str(tmp_path), torch.no_grad), "bbox/AP")
    loop = _Loop([Evaluation(0, evaluate), best, ImagesAfterTraining(lambda: done.append("drawn"))], step)
    with pytest.raises(TrainingError) if fails_at is not None else contextlib.nullcontext():
        loop.train(0, 4)
    assert done == ([] if fails_at is not None else ["evaluated", "drawn"])
    assert (tmp_path / "model_best.pth").exists() == (fails_at is None)


# Loss normalisers


def test_normalisers_that_are_plain_numbers_return(tmp_path: Path) -> None:
    model, other = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
    model[0].loss_normalizer = 12.5
    LossNormalizers(other).load_state_dict(LossNormalizers(model).state_dict())
    assert other[0].loss_normalizer == 12.5
    assert LossNormalizers(nn.Identity()).state_dict() == {}


# Steps


class _Mean(nn.Module):
    """Loss: mean of (weight x - 1)^2 over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, batch: list[dict[str, float]]) -> dict[str, torch.Tensor]:
        self.seen += len(batch)
        x = torch.tensor([image["x"] for image in batch])
        return {"loss": (self.weight * x - 1).square().mean()}


def _steps(model: _Mean, values: list[list[float]], accumulate: int, action: str = "stop") -> StepTrainer:
    batches = [[{"x": x, "file_name": f"{x}.png"} for x in batch] for batch in values]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    guard = LossGuard(action, lambda: "The last good checkpoint is a.pth.")
    trainer = StepTrainer(model, batches, optimizer, precision=Precision("cpu"), guard=guard, accumulate=accumulate)
    trainer.train(0, len(batches) // accumulate)
    return trainer


def test_accumulated_gradients_are_those_of_the_large_batch() -> None:
    large, small = _Mean(), _Mean()
    _steps(large, [[1, 2, 3, 4], [5, 6, 7, 8]], 1)
    _steps(small, [[1, 2], [3, 4], [5, 6], [7, 8]], 2)
    difference = abs(large.weight.item() - small.weight.item())
    report("accumulated gradients: weights of the large batch", 1, difference < 1e-6, difference=difference)
    assert difference < 1e-6


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    model = _Mean()
    with pytest.raises(TrainingError) as caught:
        _steps(model, [[1.0, 2.0], [3.0, math.inf]], 2)
    for words in ("iteration 0", "loss inf", "3.0.png, inf.png", "last good checkpoint is a.pth", "weights were not"):
        assert words in str(caught.value)
    assert "1.0.png" not in str(caught.value)
    assert model.weight.item() == 0.5


def test_a_skipped_step_leaves_weights_and_buffers_as_they_were() -> None:
    model, other = _Mean(), _Mean()
    _steps(model, [[1.0], [math.nan], [2.0]], 1, "skip")
    _steps(other, [[1.0], [2.0]], 1)
    assert model.state_dict() == other.state_dict()


def test_too_many_skipped_steps_stop_the_run() -> None:
    with pytest.raises(TrainingError, match=f"{MAX_SKIPPED_IN_A_ROW} steps in a row"):
        _steps(_Mean(), [[math.nan]] * 20, 1, "skip")


def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER\.NONFINITE_LOSS 'skp'.*'skip'"):
        LossGuard("skp", str)


def test_a_lower_precision_reaches_the_forward_pass() -> None:
    seen = []

    class Model(nn.Linear):
        def forward(self, batch: Any) -> torch.Tensor:
            out = super().forward(batch[0])
            seen.append(out.dtype)
            return out.float().sum()

    model = Model(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = LossGuard("stop", str)
    lower = Precision("cpu", torch.bfloat16)
    with EventStorage():
        StepTrainer(model, [[torch.ones(1, 2)]], optimizer, precision=lower, guard=guard).train(0, 1)
    assert seen == [torch.bfloat16]
    assert model.weight.dtype == torch.float32


def test_an_optimizer_with_other_groups_is_refused_when_a_run_is_resumed() -> None:
    saved = _steps(_Mean(), [[1.0]], 1).state_dict()
    _steps(_Mean(), [[1.0]], 1).load_state_dict(saved)
    saved["optimizer"]["param_groups"][0]["params"].append(1)
    with pytest.raises(CheckpointError, match=r"does not fit this run \(.*MODEL\.WEIGHTS .*without --resume"):
        _steps(_Mean(), [[1.0]], 1).load_state_dict(saved)


@pytest.mark.parametrize(("before", "after"), [('{"a": 1}\n{"it', '{"a": 1}\n{"it\n'), ("{}\n", "{}\n"), ("", "")])
def test_a_line_of_metrics_that_was_cut_off_is_not_continued(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "metrics.json").write_text(before)
    trainer._end_last_line(tmp_path / "metrics.json")
    assert (tmp_path / "metrics.json").read_text() == after
