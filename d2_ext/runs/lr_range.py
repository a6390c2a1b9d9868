"""Learning-rate range test: the loss while the rate grows from step to step.

Paper: Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from d2_ext.data.randomness import STEPS, seed_generators
from d2_ext.data.reproducible import TrainLoader
from d2_ext.engine.trainer import Trainer
from d2_ext.errors import ConfigError

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

__all__ = ["RangeTest", "try_rates"]

MEMORY = 0.9  # of the running mean: the weight of what came before
DIVERGED = 4.0  # times the lowest mean loss
FIRST_SHARE = 0.1  # of the steps: a loss that is lowest there has risen from the start
MARGIN = 10.0  # between the rate of the lowest loss and the proposed one


@dataclass(frozen=True)
class RangeTest:
    """Rates and what the loss was with them.

    Attributes:
        rates: ``SOLVER.BASE_LR`` of each step, rising.
        losses: total loss of the batch of each step, before the weights changed.
        planned: steps, if the loss had not grown without bound before.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    planned: int

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Running means of the losses: with weight 0.9 for what came before, without the bias of the start.

        Example:
            >>> RangeTest((0.1, 0.2), (4.0, 2.0), 2).smoothed  # 4, (0.9 * 0.1 * 4 + 0.1 * 2) / (1 - 0.9^2)
            (4.0, 2.9473684210526314)
        """
        mean, values = 0.0, []
        for step, loss in enumerate(self.losses, start=1):
            mean = MEMORY * mean + (1 - MEMORY) * loss
            values.append(mean / (1 - MEMORY**step))
        return tuple(values)

    @property
    def lowest(self) -> int:
        """The step with the lowest mean loss."""
        smoothed = self.smoothed
        return min(range(len(smoothed)), key=smoothed.__getitem__)

    @property
    def proposal(self) -> float | None:
        """A tenth of the rate at which the mean loss was lowest; None if that was at the start or the end."""
        if not self.planned * FIRST_SHARE <= self.lowest < self.planned - 1:
            return None
        return self.rates[self.lowest] / MARGIN


def try_rates(
    cfg: CfgNode, *, lowest: float, highest: float, steps: int, progress: Callable[[], object] = lambda: None
) -> RangeTest:
    """Train from ``MODEL.WEIGHTS`` with a rate that grows by a constant factor from step to step; nothing of it stays.

    Args:
        cfg: checked and frozen. Schedule and ``SOLVER.BASE_LR`` play no role, but ratios of rates, as of biases, do.
        lowest: rate of the first step.
        highest: of the last one.
        steps: at least 10.
        progress: called after each step.

    Returns:
        The losses up to the last step, or to the one at which they had grown to four times their lowest mean.

    Raises:
        ConfigError: the rates do not rise.
    """
    if not 0 < lowest < highest:
        raise ConfigError(f"--lowest {lowest:g} and --highest {highest:g}: expected rising rates above 0.")
    with tempfile.TemporaryDirectory(prefix="d2_ext_lr_find_") as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.WANDB.ENABLED, cfg.SOLVER.EMA.ENABLED = folder, False, False
        cfg.SOLVER.NONFINITE_LOSS = "skip"  # it ends the test, and is no error
        cfg.freeze()
        if cfg.SEED >= 0:
            seed_all_rng(cfg.SEED)  # as a training does before it builds the model
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        return _climb(trainer, [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)], progress)


def _climb(trainer: Trainer, rates: list[float], progress: Callable[[], object]) -> RangeTest:
    runner: Any = trainer._trainer
    if isinstance(runner.data_loader, TrainLoader):
        runner.data_loader.start_at(0, trainer.seed)
    # A group may have a rate of its own, such as that of biases: as a factor of BASE_LR.
    groups = [(group, group["initial_lr"] / trainer.cfg.SOLVER.BASE_LR) for group in runner.optimizer.param_groups]
    losses: list[float] = []
    try:
        with EventStorage(0) as storage:
            for step, rate in enumerate(rates):
                for group, factor in groups:
                    group["lr"] = rate * factor
                runner.iter = storage.iter = step
                seed_generators(trainer.seed, STEPS, step, 0)
                runner.run_step()
                value, written = storage.latest().get("total_loss", (math.inf, -1))
                losses.append(value if written == step else math.inf)  # nothing is written of a skipped step
                progress()
                found = RangeTest(tuple(rates[: len(losses)]), tuple(losses), len(rates))
                smoothed = found.smoothed
                if not math.isfinite(smoothed[-1]) or smoothed[-1] > DIVERGED * smoothed[found.lowest]:
                    break
    finally:
        loader = runner.data_loader
        runner.reset_data_loader(lambda: loader)  # ends its worker processes
    return found
