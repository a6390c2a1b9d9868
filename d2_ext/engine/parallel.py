"""Data parallel training over processes, with or without GPUs."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from d2_ext.engine.hooks import Interrupted
from d2_ext.errors import CheckpointError, ConfigError, DatasetError, TrainingError

import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel


def wrap_data_parallel(model: nn.Module) -> nn.Module:
    """Wrap a model for training in several processes; a single process gets the model itself.

    Detectron2's own ``create_ddp_model`` names a device also for a model on the CPU, which DDP refuses, so that
    several processes over gloo never worked there.

    Args:
        model: on the device it is to be trained on.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


def launch_training(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call ``main(args)`` in as many processes as the command line asks for, and wait for them.

    Signals are passed on to the processes, which stop together.

    Args:
        main: importable.
        args: of ``detectron2.engine.default_argument_parser``.

    Raises:
        SystemExit: with the exit code of a process that has already said why it ended.
        TrainingError: if one was killed; the others have been ended.
    """
    if args.num_gpus * args.num_machines <= 1:
        main(args)
        return
    with _signals_passed_on():
        try:
            launch(
                _run_in_process, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(main, args)
            )
        except ProcessExitedException as error:
            if error.exit_code > 0:
                raise SystemExit(error.exit_code) from error
            known = vars(error)
            pid = known.get("error_pid", known.get("pid"))  # the latter in PyTorch 2.6
            raise TrainingError(
                f"Process {error.error_index} of {args.num_gpus} on this machine (pid {pid}) was killed by "
                f"{error.signal_name}; the others were ended. Continue with --resume."
            ) from error


def leave_process_group() -> None:
    """Wait for all processes and leave their group, if there is one: the last thing that a process of several does.

    Without it the communication's own threads may still run when the interpreter ends, which aborts the process
    (SIGABRT) although its work is done.
    """
    comm.synchronize()
    _close_process_group()


def _close_process_group() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def exit_code(error: Exception) -> int:
    """2 for wrong usage, 1 for data, checkpoints or runs that failed."""
    return 2 if isinstance(error, ConfigError) else 1


def _run_in_process(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """One of several processes: it says itself why it ends, in words instead of a traceback."""
    try:
        main(args)
    except Interrupted as stopped:
        if comm.is_main_process():
            print(stopped, file=sys.stderr)  # noqa: T201
        code = stopped.exit_code
    except (ConfigError, CheckpointError, DatasetError, TrainingError) as error:
        print(f"error (process {comm.get_rank()}): {error}", file=sys.stderr)  # noqa: T201
        code = exit_code(error)
    else:
        leave_process_group()
        return
    _close_process_group()  # without waiting: the others may never come
    sys.exit(code)


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the child processes, and this one when they have ended."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
