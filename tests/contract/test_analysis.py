"""Counts of operations and parameters, by hand; on either implementation of Detectron2."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    find_unused_parameters,
    flop_count_operators,
    parameter_count,
    parameter_count_table,
)
from torch import nn


class _Detector(nn.Module):
    """A convolution and a linear layer on the mean; answers like a detector, in training mode with a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, batch: list[dict]) -> list[dict]:
        features = self.conv(torch.stack([record["image"] for record in batch]))
        boxes = self.fc(features.mean(dim=(2, 3)).sigmoid() * 2 + 1)
        if self.training:
            return {"loss": boxes.sum()}
        result = Instances((8, 10), pred_boxes=Boxes(boxes))
        return [{"instances": result} for _ in batch]


def test_operations_by_operator() -> None:
    model = _Detector().train()
    counts = flop_count_operators(model, [{"image": torch.rand(3, 8, 10), "height": 8, "other": "text"}])
    assert counts["conv"] * 1e9 == pytest.approx(8 * 10 * 4 * 3 * 9)
    assert counts["linear"] * 1e9 == pytest.approx(4 * 4)
    assert set(counts) <= {"conv", "linear", "mean"}  # element-wise operators are not counted
    assert model.training


def test_operations_by_module() -> None:
    analysis = FlopCountAnalysis(_Detector().eval(), [{"image": torch.rand(3, 8, 10)}])
    assert analysis.by_module()["model.conv"] == 8640


def test_activations_are_the_elements_of_the_outputs() -> None:
    model = _Detector().train()
    counts = activation_count_operators(model, [{"image": torch.rand(3, 8, 10), "other": "text"}])
    assert counts["conv"] * 1e6 == pytest.approx(8 * 10 * 4)
    assert counts["linear"] * 1e6 == pytest.approx(4)
    assert model.training
    with pytest.raises(AssertionError, match="batch size"):
        activation_count_operators(model, [])


def test_parameters() -> None:
    counts = parameter_count(_Detector())
    assert (counts[""], counts["conv"], counts["fc.bias"], counts["unused"]) == (108 + 20 + 6, 108, 4, 6)
    assert "conv" in parameter_count_table(_Detector())


def test_parameters_without_influence_on_the_loss_are_found() -> None:
    model = _Detector().train()
    unused = find_unused_parameters(model, [{"image": torch.rand(3, 8, 10)}])
    assert unused == ["unused.weight", "unused.bias"]
    assert all(parameter.grad is None for parameter in model.parameters())
