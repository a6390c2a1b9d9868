"""A report of versions and devices for bug reports: ``python -m d2_ext.utils.env``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import d2_ext
from d2_ext.utils.devices import cpu_computes_bfloat16

import torch
from detectron2.utils.collect_env import collect_env_info
from tabulate import tabulate

__all__ = ["commit_of", "cpu_name", "environment_report"]

OPTIONAL = (
    *("albumentations", "fiftyone", "gradio", "onnx", "onnxruntime", "onnxscript", "openvino", "sahi", "supervision"),
    *("tensorboard", "triton", "wandb"),
)


def environment_report() -> str:
    """What a maintainer has to know: d2_ext, which Detectron2, optional packages, machine; then Detectron2's report."""
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("D2_EXT_")]
    rows = [
        ("d2_ext", f"{d2_ext.__version__} @{Path(d2_ext.__file__).parent}"),
        ("commit", commit_of(Path(d2_ext.__file__).parent) or "no git checkout"),
        ("detectron2", d2_ext.ensure_detectron2()),
        ("D2_EXT_*", " ".join(variables) or "none is set"),
        ("system", platform.platform()),
        ("CPU", f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"),
        ("bfloat16", "in hardware" if cpu_computes_bfloat16() else "emulated, slower than float32"),
    ]
    for name in OPTIONAL:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed (optional)"))
    return f"{tabulate(rows, disable_numparse=True)}\n\n{collect_env_info()}"


def commit_of(folder: Path) -> str | None:
    """The git commit of a checkout, with ``+changes`` if files differ from it; None outside of one, or without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def cpu_name() -> str:
    """Name of the processor: as Linux says; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


if __name__ == "__main__":
    sys.stdout.write(environment_report() + "\n")
