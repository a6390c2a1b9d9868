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
        self._of_all = comm.gather(self._own())

    def state_dict(self) -> dict[str, Any]:
        of_all = self._of_all or [self._own()]
        return {"of_ranks": of_all} if any(of_all) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        of_all = state_dict["of_ranks"]
        modules = dict(self._model.named_modules())
        # With another number of processes there is no exact continuation; the nearest is any of the old averages.
        for name, value in of_all[comm.get_rank() % len(of_all)].items():
            setattr(modules[name], ATTRIBUTE, value)

    def _own(self) -> dict[str, float]:
        values = {name: vars(module).get(ATTRIBUTE) for name, module in self._model.named_modules()}
        return {name: value for name, value in values.items() if isinstance(value, (int, float))}
