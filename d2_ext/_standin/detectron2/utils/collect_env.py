"""A report of the software and devices of this machine, for logs: ``python -m detectron2.utils.collect_env``."""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterator

import detectron2
import numpy as np
import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_LIBRARIES = {"Pillow": "PIL", "torchvision": "torchvision", "fvcore": "fvcore", "iopath": "iopath", "cv2": "cv2"}


def collect_env_info() -> str:
    """A table of versions and devices, followed by how PyTorch was built."""
    return f"{tabulate(list(_rows()))}\n{torch.__config__.show()}"


def _rows() -> Iterator[tuple[str, str]]:
    yield "sys.platform", sys.platform
    yield "Python", sys.version.replace("\n", "")
    yield "numpy", np.__version__
    yield "detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)} (stand-in, pure Python)"
    yield "DETECTRON2_ENV_MODULE", os.environ.get("DETECTRON2_ENV_MODULE", "<not set>")
    yield "PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"
    yield "PyTorch debug build", str(torch.version.debug)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = Counter(torch.cuda.get_device_name(index) for index in range(count))
    yield "GPU", ", ".join(f"{number} x {name}" for name, number in names.items()) or "none that PyTorch can use"
    yield "CUDA of PyTorch", str(torch.version.cuda)
    for label, name in _LIBRARIES.items():
        try:
            yield label, getattr(importlib.import_module(name), "__version__", "version unknown")
        except ImportError:
            yield label, "not installed"


if __name__ == "__main__":
    print(collect_env_info())  # noqa: T201
