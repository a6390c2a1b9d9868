"""Time several functions in one run, in turn, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import datetime
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

MIN_SECONDS = 0.02  # a round repeats a function until it took so long, so that short ones are timed well


def medians(functions: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Median seconds per call of each function, over rounds in which every function has its turn."""
    calls = {name: max(math.ceil(MIN_SECONDS / _seconds(function, 1)), 1) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(_seconds(function, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def write_json(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the machine, date and commit they were measured on."""
    content = {"machine": machine(), "date": datetime.date.today().isoformat(), "commit": commit(), "rows": rows}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def machine() -> str:
    """The processor, threads and torch version, and the GPU if there is one."""
    parts = [processor(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def processor() -> str:
    """Name of the processor where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Short hash of the commit, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
