"""Random numbers as a function of where a run is, so that nothing has to remember the state of a generator.

What is drawn for sample 1234, or in step 99 of rank 1, depends on the seed of the run and on these numbers alone: not
on how many worker processes load data, nor on whether the run was interrupted before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SAMPLES, STEPS, SAMPLER, VALIDATION = range(4)  # first number after the seed: streams that must not meet


def seed_generators(*key: int) -> None:
    """Seed the generators of ``random``, numpy and torch (GPUs included, where they are in use) from integers >= 0."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    number = int(words[0]) << 32 | int(words[1])
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # in a forked worker it is not, and must not become so
        torch.cuda.manual_seed_all(number)


@contextmanager
def generators_preserved() -> Iterator[None]:
    """Put the generators of the CPU (``random``, numpy, torch) back to what they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
