"""Counts of operations, activations and parameters of a detector, by fvcore, which traces the model once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fvcore.nn
import torch
from detectron2.evaluation import inference_context
from detectron2.structures import Instances
from fvcore.nn import parameter_count, parameter_count_table
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = [
    "FlopCountAnalysis", "activation_count_operators", "find_unused_parameters", "flop_count_operators",
    "parameter_count", "parameter_count_table",
]  # fmt: skip


class _TensorsOnly(nn.Module):
    """A model as tracing needs it: the tensors of a nesting of lists, tuples and dicts in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.leaves, self.structure = tree_flatten(inputs if isinstance(inputs, tuple) else (inputs,))
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]
        self.tensors = tuple(self.leaves[i] for i in self.places)  # the arguments of forward

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors of the model's answer; without gradients, which frozen layers compute by other operators."""
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, tensors):
            leaves[i] = tensor
        with torch.no_grad():
            return tuple(_tensors_in(self.model(*tree_unflatten(leaves, self.structure))))


def _tensors_in(answer: Any) -> Iterator[torch.Tensor]:
    for leaf in tree_flatten(answer)[0]:
        if isinstance(leaf, Instances):
            yield from _tensors_in(list(leaf.get_fields().values()))
        elif isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(getattr(leaf, "tensor", None), torch.Tensor):  # boxes and masks
            yield leaf.tensor


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's counter for a model of Detectron2, in the mode that the model is in.

    A multiplication with its addition counts as one operation. Operators that fvcore has no count for are left out
    without a warning. Names of modules start with ``model.``. A tuple of inputs holds several arguments.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        traced = _TensorsOnly(model, inputs)
        super().__init__(traced, traced.tensors)
        self.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


def flop_count_operators(model: nn.Module, inputs: list) -> dict[str, float]:
    """10^9 operations of one call in evaluation mode, on a batch, by name of the operator, such as ``conv``."""
    with inference_context(model):
        counts = FlopCountAnalysis(model, inputs).by_operator()
    return {operator: counts[operator] / 1e9 for operator in counts}


def activation_count_operators(model: nn.Module, inputs: list, **kwargs: Any) -> dict[str, float]:
    """10^6 elements of the outputs of convolutions and matrix products, in one call in evaluation mode, by operator.

    ``inputs`` is a batch of one image (else AssertionError); ``kwargs`` are those of ``fvcore.nn.activation_count``.
    """
    assert len(inputs) == 1, f"Activations are counted for a batch size of 1, not {len(inputs)}."
    traced = _TensorsOnly(model, inputs)
    with inference_context(model):
        return fvcore.nn.activation_count(traced, traced.tensors, **kwargs)[0]


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Names of the parameters that the losses do not depend on, or that are frozen.

    The model must be in training mode, where it gives a dict of losses, or one; a tuple of inputs holds several.
    """
    assert model.training, "Losses exist in training mode only: call model.train() first."
    losses = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    total = sum(losses.values()) if isinstance(losses, dict) else losses
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = dict(zip(trained, torch.autograd.grad(total, list(trained.values()), allow_unused=True)))
    return [name for name, _ in model.named_parameters() if gradients.get(name) is None]
