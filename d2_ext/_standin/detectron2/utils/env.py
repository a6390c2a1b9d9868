"""Seeds and process-wide set-up of other libraries."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import random
import sys
from datetime import datetime
from types import ModuleType

import numpy as np
import torch

__all__ = ["seed_all_rng"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""Version of PyTorch as two integers."""

_environment_is_set_up = False


def seed_all_rng(seed: int | None = None) -> None:
    """Seed numpy, torch (all devices), ``random`` and the hashes of child processes.

    Args:
        seed: in [0, 2**32); a random one is made and logged for ``None``.
    """
    if seed is None:
        entropy = int.from_bytes(os.urandom(2), "big")
        seed = os.getpid() + int(datetime.now().strftime("%S%f")) + entropy
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    np.random.seed(seed)
    torch.manual_seed(seed)  # also the generators of all GPUs
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def setup_environment() -> None:
    """Set up OpenCV and run the user's own set-up, once a process.

    ``DETECTRON2_DISABLE_CV2=1`` makes ``import cv2`` fail. ``DETECTRON2_ENV_MODULE`` names a Python file or module
    with a function ``setup_environment()``, which is called.
    """
    global _environment_is_set_up
    is_first_call, _environment_is_set_up = not _environment_is_set_up, True
    if is_first_call:
        _configure_cv2()
        if custom := os.environ.get("DETECTRON2_ENV_MODULE"):
            setup_custom_environment(custom)


def setup_custom_environment(custom_module: str) -> None:
    """Import the file (``*.py``) or module ``custom_module`` and call its ``setup_environment()``."""
    if custom_module.endswith(".py"):
        module = _import_file("detectron2.utils.env.custom_module", custom_module)
    else:
        module = importlib.import_module(custom_module)
    assert callable(getattr(module, "setup_environment", None)), (
        f"The environment module {custom_module} (DETECTRON2_ENV_MODULE) must define a function setup_environment()."
    )
    module.setup_environment()


def _configure_cv2() -> None:
    if int(os.environ.get("DETECTRON2_DISABLE_CV2", 0)):
        sys.modules["cv2"] = None  # type: ignore[assignment]  # import cv2 raises ImportError from now on
        return
    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"  # OpenCL in OpenCV slows down programs that use CUDA
    if importlib.util.find_spec("cv2") is None:
        return
    import cv2

    cv2.ocl.setUseOpenCL(False)


def _import_file(module_name: str, file_path: str, make_importable: bool = False) -> ModuleType:
    """Execute the Python file as a module of that name, optionally entering it in ``sys.modules``."""
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    assert spec is not None, f"{file_path} is not a Python file"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if make_importable:
        sys.modules[module_name] = module
    return module
