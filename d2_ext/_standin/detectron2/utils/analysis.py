"""Counting operations, activations and parameters of models that take a list of dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fvcore.nn
import torch
from fvcore.nn import activation_count, parameter_count, parameter_count_table
from torch import nn

__all__ = [
    "activation_count_operators",
    "flop_count_operators",
    "parameter_count_table",
    "parameter_count",
    "FlopCountAnalysis",
]

# Element-wise and reduction operators, which are not counted.
# fmt: off
_IGNORED_ATEN_OPS = (
    "add", "add_", "argmax", "argsort", "batch_norm", "constant_pad_nd", "div", "div_", "exp", "log2",
    "max_pool2d", "meshgrid", "mul", "mul_", "neg", "nonzero_numpy", "reciprocal", "repeat_interleave", "rsub",
    "sigmoid", "sigmoid_", "softmax", "sort", "sqrt", "sub",
)
# fmt: on
_IGNORED_OPS = {f"aten::{name}" for name in _IGNORED_ATEN_OPS} | {"torchvision::nms"}


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers, and in objects that hold tensors (``Instances``, ``Boxes``)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif hasattr(value, "get_fields"):
        yield from _tensors_in(value.get_fields())
    elif isinstance(getattr(value, "tensor", None), torch.Tensor):
        yield value.tensor


class _FlatModel(nn.Module):
    """Calls the model with fixed inputs and returns all tensors of its outputs as a tuple, as tracing needs it.

    Runs without gradients: frozen batch norms take another path otherwise, and are then not counted as such.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
        self.model = model.module if isinstance(model, parallel) else model
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.flattened_inputs = tuple(_tensors_in(self.inputs))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return tuple(_tensors_in(self.model(*self.inputs)))


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's analysis for models with arguments of any structure.

    Args:
        model: any module; it is analysed in the mode it is in.
        inputs: its argument, or the tuple of its arguments; tensors inside dicts, lists, ``Instances`` are found.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        flat = _FlatModel(model, inputs)
        super().__init__(flat, flat.flattened_inputs)
        self.set_op_handle(**dict.fromkeys(_IGNORED_OPS))


def flop_count_operators(model: nn.Module, inputs: list) -> dict[str, float]:
    """Giga-operations of each operator for one inference; a multiplication with an addition counts as one.

    Args:
        model: a detector; it is put in evaluation mode for the count.
        inputs: its list of dicts.
    """
    mode = model.training
    counts = FlopCountAnalysis(model.eval(), inputs).by_operator()
    model.train(mode)
    return {operator: operations / 1e9 for operator, operations in counts.items()}


def activation_count_operators(model: nn.Module, inputs: list, **kwargs: Any) -> dict[str, float]:
    """Mega-activations (output elements) of each operator for one inference.

    Args:
        model: a detector; it is put in evaluation mode for the count.
        inputs: list of one dict, of which only ``image`` is used.
        kwargs: arguments of ``fvcore.nn.activation_count``.
    """
    assert len(inputs) == 1, "Please use batch size=1"
    handles = {name: (lambda *args, **kwargs: {}) for name in _IGNORED_OPS} | kwargs.pop("supported_ops", {})
    was_training = model.training
    flat = _FlatModel(model, [{"image": inputs[0]["image"]}]).eval()
    counts, _ = activation_count(flat, flat.flattened_inputs, supported_ops=handles, **kwargs)
    model.train(was_training)
    return counts


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Names of the parameters that get no gradient from the losses.

    Args:
        model: in training mode; returns a loss or a dict of losses. All gradients are cleared.
        inputs: its argument, or the tuple of its arguments.
    """
    assert model.training
    model.zero_grad(set_to_none=True)
    losses = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    total = sum(losses.values()) if isinstance(losses, dict) else losses
    total.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    return unused
