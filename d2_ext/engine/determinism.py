"""The switch that lets a GPU give the same result each time."""

from __future__ import annotations

import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def set_deterministic(enabled: bool) -> None:
    """Choose algorithms that give the same result each time (``DETERMINISTIC``), or leave everything as it is.

    An operation without such an algorithm then raises a RuntimeError that names it.

    Args:
        enabled: whether to. To be called before the first use of a GPU.
    """
    if not enabled:
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it would choose by speed, which varies
