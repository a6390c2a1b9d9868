"""A run in one process or several: signals and errors reach all of them, and each says in words why it ends."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from d2_ext.engine.hooks import Interrupted
from d2_ext.engine.parallel import join_process_group, leave_process_group
from d2_ext.errors import ConfigError, TrainingError
from d2_ext.runs.record import resume_command
from d2_ext.runs.user_errors import explain

from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

__all__ = ["count_processes", "is_one_of_torchruns", "launch_run", "read_torchrun"]

Main = Callable[[argparse.Namespace], None]
TORCHRUN = "TORCHELASTIC_RUN_ID"  # it sets this, beside RANK, WORLD_SIZE, LOCAL_RANK, ...


def read_torchrun(args: argparse.Namespace) -> None:
    """Under ``torchrun``, put the place of this process into the flags: each process counts as a machine of its own.

    So the first alone renames an earlier run. Without ``torchrun``, or with one process, nothing is changed.

    Raises:
        ConfigError: if flags ask for processes, too.
    """
    if not is_one_of_torchruns():
        return
    if (args.num_gpus, args.num_machines) != (1, 1):
        raise ConfigError(
            f"torchrun has started {os.environ['WORLD_SIZE']} processes, and --num-gpus {args.num_gpus} --num-machines "
            f"{args.num_machines} asks for more. Leave these flags out, or start without torchrun."
        )
    args.num_machines, args.machine_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


def is_one_of_torchruns() -> bool:
    """Whether ``torchrun`` has started this process and others."""
    return TORCHRUN in os.environ and os.environ["WORLD_SIZE"] != "1"


def count_processes(args: argparse.Namespace) -> int:
    """How many processes the flags of the command line ask for, over all machines.

    Raises:
        ConfigError: numbers that contradict each other.
    """
    for flag, value in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
        if value < 1:
            raise ConfigError(f"{flag} is {value}; expected at least 1. It counts processes where there is no GPU.")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}; expected 0 to {args.num_machines - 1} with --num-machines "
            f"{args.num_machines}."
        )
    return args.num_gpus * args.num_machines


def launch_run(main: Main, args: argparse.Namespace) -> int:
    """Call ``main(args)`` in as many processes as the command line asks for, and wait for them.

    SIGINT and SIGTERM are passed on to the processes, which stop together. Under ``torchrun`` this process is one of
    them.

    Args:
        main: importable.
        args: of ``detectron2.engine.default_argument_parser``.

    Returns:
        The exit code: 0, 130 after Ctrl-C, 143 after SIGTERM; that of a process which has said itself why it ended.

    Raises:
        TrainingError: if a process was killed; the others have been ended.
    """
    if count_processes(args) == 1:
        try:
            main(args)
        except Interrupted as stopped:
            return _say_goodbye(stopped)
        return 0
    if is_one_of_torchruns():  # this is one of them already; torchrun passes signals on
        join_process_group(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
        _one_of_several(main, args)
        return 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            # On Windows Ctrl-C has reached all processes of the console, and os.kill would end them on the spot.
            if process.pid is not None and sys.platform != "win32":
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        launch(_one_of_several, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(main, args))
    except ProcessExitedException as error:
        if error.exit_code > 0:
            return error.exit_code
        known = vars(error)
        pid = known.get("error_pid", known.get("pid"))  # the latter in PyTorch 2.6
        raise TrainingError(
            f"Process {error.error_index} of {args.num_gpus} on this machine (pid {pid}) was killed by "
            f"{error.signal_name}; the others were ended. Continue with --resume."
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _one_of_several(main: Main, args: argparse.Namespace) -> None:
    try:
        main(args)
    except Interrupted as stopped:
        code = _say_goodbye(stopped)
    except Exception as error:
        known, message = explain(error)
        if known is None:
            raise
        print(f"error (process {comm.get_rank()}): {message}", file=sys.stderr)
        code = known
    else:
        leave_process_group()
        return
    leave_process_group(wait=False)
    sys.exit(code)


def _say_goodbye(stopped: Interrupted) -> int:
    """Say how to go on; returns the exit code."""
    if comm.is_main_process():
        print(f"{stopped} Go on with: {resume_command()}", file=sys.stderr)
    return stopped.exit_code
