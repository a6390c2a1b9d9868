"""Samplers: which element comes next."""

from .distributed_sampler import *  # noqa: F403
from .grouped_batch_sampler import *  # noqa: F403

__all__ = [name for name in globals() if name.endswith("Sampler")]
