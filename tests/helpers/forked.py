"""Processes forked from a server that has imported everything once, so that each starts in a moment.

A process of these is as clean as one that is started anew, but for the imports: it knows nothing of the test, its
data sets and patches.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

import torch

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["helpers.small_runs", "torch.utils.tensorboard"])
# As torch's own, but the processes come from the server.
start_processes = functools.partial(torch.multiprocessing.start_processes, start_method="forkserver")


def become_command(argv: list[str], log: str, environment: dict[str, str]) -> None:
    """Make this process, which was forked, one of a command line: session, arguments, environment, output in a file."""
    os.setsid()
    os.environ.update(environment)
    sys.argv = argv
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a run of a user
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    # Processes that `launch` starts are forked from this one instead of importing everything again.
    torch.multiprocessing.start_processes = functools.partial(
        torch.multiprocessing.start_processes, start_method="fork"
    )


def _run_script(argv: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    become_command(argv, log, environment)
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


def start_script(script: str | Path, *arguments: str | Path, cwd: Path, log: Path) -> BaseProcess:
    """Start a Python script with this process's environment; it leads a session of its own.

    Args:
        script: its path.
        arguments: its command line.
        cwd: the folder it works in.
        log: what it prints is appended to this file.
    """
    argv = [str(script), *map(str, arguments)]
    process = FORKSERVER.Process(target=_run_script, args=(argv, str(log), str(cwd), dict(os.environ)))
    process.start()
    return process


def run_script(script: str | Path, *arguments: str | Path, cwd: Path) -> CompletedProcess[str]:
    """Run a Python script to its end, see :func:`start_script`; ``stdout`` of the result is all that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        process = start_script(script, *arguments, cwd=cwd, log=log)
        process.join(600)
        assert process.exitcode is not None, f"{script} hangs"
        return CompletedProcess([str(script), *map(str, arguments)], process.exitcode, log.read_text())
