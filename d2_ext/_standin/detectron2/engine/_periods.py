"""When a hook has its turn."""

from __future__ import annotations

from typing import Any


def is_due(trainer: Any, period: int) -> bool:
    """Whether a period ends with this iteration; a period of 0 never does."""
    return period > 0 and (trainer.iter + 1) % period == 0


def is_last(trainer: Any) -> bool:
    """Whether this is the last iteration of the training."""
    return trainer.iter == trainer.max_iter - 1
