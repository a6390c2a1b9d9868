"""The random numbers of a step: Gumbel noise, dropout, and whatever else draws from the global generators."""

from __future__ import annotations

from typing import Any

from d2_ext.data.randomness import STEPS, seed_generators

from detectron2.engine import HookBase
from detectron2.utils import comm


class RandomNumbersOfStep(HookBase):
    """Seeds all generators before each step from the seed of the run, the iteration and the rank.

    A resumed run then draws what the uninterrupted one would have drawn. To be registered first.

    Args:
        seed: ``SEED`` of the config. If that is negative, one is drawn that all processes share; a resumed run takes
            over the one in its checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self._is_given = seed >= 0
        self.seed = seed if self._is_given else comm.shared_random_seed()

    def before_step(self) -> None:
        seed_generators(self.seed, STEPS, self.trainer.iter, comm.get_rank())

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._is_given:
            self.seed = state_dict["seed"]
