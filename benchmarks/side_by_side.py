"""Time several functions in one run, in turn, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from d2_ext.utils.env import cpu_name

import torch

MIN_SECONDS = 0.02  # a round repeats a function until it took so long, so that short ones are timed well


def medians(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warmup: int = 1,
    max_seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds per call of each function, over rounds in which every function has its turn.

    A turn is one call untimed and then the timed ones: what the function before it left in the caches and did to the
    heap (memory given back must be asked for anew, page by page) is not a cost of this one. After ``max_seconds`` no
    further round starts, but one always counts. On a machine shared with others, ``clock=time.process_time`` with one
    thread counts what the functions use.
    """
    calls = {name: max(math.ceil(MIN_SECONDS / _seconds(run, 1, clock)), 1) for name, run in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    for round_number in range(warmup + repeats):
        if round_number > warmup and time.perf_counter() - start > max_seconds:
            break
        for name, function in functions.items():
            function()
            seconds = _seconds(function, calls[name], clock)
            if round_number >= warmup:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(function: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return max((clock() - start) / calls, 1e-9)  # a coarse clock may not have moved


def peak_memory(function: Callable[[], Any], *, calls: int = 3) -> float | None:
    """MiB that a call needs at its peak on top of what is there before it; None where the system does not tell.

    The smallest of a few calls: holes in the heap, which differ from call to call, add to it and never take away.
    """
    peaks = [_peak_of_one_call(function) for _ in range(calls)]
    return None if None in peaks else min(peaks)


def _peak_of_one_call(function: Callable[[], Any]) -> float | None:
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before must not serve this call unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return None
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 2**10


def _status(key: str) -> int:
    """A figure in KiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def write_json(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the machine, date and commit they were measured on."""
    content = {"machine": machine(), "date": datetime.date.today().isoformat(), "commit": commit(), "rows": rows}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def rows_to_extend(path: str | Path) -> list[dict[str, Any]]:
    """Rows of an earlier run that further rows may join: none if there is no file.

    Raises:
        ValueError: if the file was measured on another machine or commit, so that the rows do not compare.
    """
    if not Path(path).exists():
        return []
    content = json.loads(Path(path).read_text())
    for key, here in (("machine", machine()), ("commit", commit())):
        if content[key] != here:
            raise ValueError(f"{path}: measured on {key} {content[key]!r}, but this is {here!r}; write another file")
    return content["rows"]


def machine() -> str:
    """The processor, threads and torch version, and the GPU if there is one."""
    parts = [cpu_name(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def commit() -> str:
    """Short hash of the commit, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
