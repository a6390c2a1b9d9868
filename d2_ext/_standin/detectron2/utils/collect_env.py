"""A report of versions and devices; also ``python -m detectron2.utils.collect_env``."""

from __future__ import annotations

import importlib
import os
import sys
from collections import defaultdict

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]


def collect_env_info() -> str:
    """Table of the versions of Python and the packages used, and of the GPUs."""
    rows = [("sys.platform", sys.platform), ("Python", sys.version.replace("\n", ""))]
    rows += _package_rows("numpy", "detectron2")
    rows.append(("detectron2._C", "not used: the stand-in is pure Python"))
    rows.append(("DETECTRON2_ENV_MODULE", os.environ.get("DETECTRON2_ENV_MODULE", "<not set>")))
    rows.append(("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"))
    rows.append(("PyTorch debug build", str(torch.version.debug)))
    rows += _gpu_rows()
    rows += _package_rows("PIL", "torchvision", "fvcore", "iopath", "cv2")
    return tabulate(rows) + "\n" + torch.__config__.show()


def _package_rows(*names: str) -> list[tuple[str, str]]:
    rows = []
    for name in names:
        title = "Pillow" if name == "PIL" else name
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            rows.append((title, f"not found ({error})"))
            continue
        folder = f" @{os.path.dirname(module.__file__ or '')}" if name in ("detectron2", "torchvision") else ""
        rows.append((title, getattr(module, "__version__", "unknown version") + folder))
    return rows


def _gpu_rows() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU available", "No: torch.cuda.is_available() == False")]
    devices: dict[str, list[str]] = defaultdict(list)
    for index in range(torch.cuda.device_count()):
        arch = ".".join(map(str, torch.cuda.get_device_capability(index)))
        devices[f"{torch.cuda.get_device_name(index)} (arch={arch})"].append(str(index))
    return [("GPU available", "Yes"), *((f"GPU {','.join(ids)}", name) for name, ids in devices.items())]


if __name__ == "__main__":
    sys.stdout.write(collect_env_info() + "\n")
