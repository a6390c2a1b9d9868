"""Loss normalizers that Detectron2 keeps as plain numbers on the model, and forgets when a run is resumed."""

from __future__ import annotations

from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

ATTRIBUTE = "loss_normalizer"  # of DenseDetector's moving averages


class LossNormalizers(HookBase):
    """Puts the moving averages of all processes, each of which has its own, into the checkpoint.

    To be registered, in all processes, before the hook that writes checkpoints.

    Args:
        model: not wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._of_all: list[dict[str, float]] = []

    def after_step(self) -> None:
        self._of_all = comm.gather(own_normalizers(self._model))

    def state_dict(self) -> dict[str, Any]:
        of_all = self._of_all or [own_normalizers(self._model)]
        return {"of_ranks": of_all} if any(of_all) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        of_all = state_dict["of_ranks"]
        # With another number of processes there is no exact continuation; the nearest is any of the old averages.
        set_normalizers(self._model, of_all[comm.get_rank() % len(of_all)])


def own_normalizers(model: nn.Module) -> dict[str, float]:
    """Name of a module -> its moving average, of this process."""
    values = {name: vars(module).get(ATTRIBUTE) for name, module in model.named_modules()}
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def set_normalizers(model: nn.Module, values: dict[str, float]) -> None:
    """Give the modules these moving averages, and the others none."""
    for name in own_normalizers(model).keys() - values.keys():
        delattr(model.get_submodule(name), ATTRIBUTE)
    for name, value in values.items():
        setattr(model.get_submodule(name), ATTRIBUTE, value)
