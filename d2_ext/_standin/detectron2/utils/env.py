"""What is set up for the whole process: random generators, and the environment that users ask for by variables."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch

__all__ = ["seed_all_rng"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
_is_set_up = False


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of Python, numpy and PyTorch, GPUs included, and the hashes of child processes.

    The seed is from 0 to 2^32 - 1; by default a random one, which is logged.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    for start in (random.seed, np.random.seed, torch.manual_seed):
        start(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def setup_environment() -> None:
    """Called once by ``import detectron2``.

    ``DETECTRON2_DISABLE_CV2=1`` makes OpenCV count as not installed; otherwise its use of OpenCL, which costs time and
    memory in each worker of a data loader, is turned off. ``DETECTRON2_ENV_MODULE`` may name a module, or a file, whose
    function ``setup_environment()`` is called.
    """
    global _is_set_up
    if _is_set_up:
        return
    _is_set_up = True
    if os.environ.get("DETECTRON2_DISABLE_CV2", "0") not in ("", "0"):
        sys.modules["cv2"] = None
    else:
        os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
        with contextlib.suppress(ImportError, AttributeError):  # not installed, or built without OpenCL
            importlib.import_module("cv2").ocl.setUseOpenCL(False)
    custom = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom:
        setup_custom_environment(custom)


def setup_custom_environment(custom_module: str) -> None:
    """Call ``setup_environment()`` of a user's module, given by its name, or by the path of a file ``*.py``."""
    if custom_module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(custom_module).stem, custom_module)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(custom_module)
    function = getattr(module, "setup_environment", None)
    assert callable(function), f"DETECTRON2_ENV_MODULE={custom_module}: there is no function setup_environment() in it."
    function()
