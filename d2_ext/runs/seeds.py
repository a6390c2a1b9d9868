"""Runs that differ in their seed alone, one after the other, each in a process and a folder of its own."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from d2_ext.config.load import merge_config
from d2_ext.errors import ConfigError

__all__ = ["read_seeds", "runs_of_seeds", "train_each"]

FINAL = "model_final.pth"
START_METHOD = "spawn"  # of the processes: nothing of one run, such as its loggers, is there in the next


def read_seeds(args: argparse.Namespace) -> None:
    """Make whole numbers of ``--seeds``, which argparse lets swallow the ``KEY VALUE`` pairs behind it.

    Raises:
        ConfigError: no number, or one twice.
    """
    words = [str(word) for word in args.seeds]
    seeds = [int(word) for word in itertools.takewhile(str.isdecimal, words)]
    if words and (not seeds or len({*seeds}) < len(seeds)):
        raise ConfigError(f"--seeds {' '.join(words[:8])}: expected different whole numbers of at least 0, as 1 2 3.")
    args.seeds, args.opts = seeds, [*words[len(seeds) :], *(args.opts or ())]


def runs_of_seeds(args: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """The folder ``OUTPUT_DIR/seed<n>`` of each run, with its arguments.

    Raises:
        ConfigError: other arguments contradict ``--seeds``.
    """
    flags = {"--eval-only": args.eval_only, "--dry-run": args.dry_run, "--print-config": args.print_config}
    given = [flag for flag, value in flags.items() if value]
    if given:
        raise ConfigError(f"--seeds trains once for each seed; {given[0]} is about one run. Leave one of them out.")
    if "SEED" in args.opts[::2]:
        raise ConfigError("--seeds and the key SEED are both given. Leave one of them out.")
    cfg = merge_config(args.config_file, args.opts)
    if not cfg.OUTPUT_DIR:
        raise ConfigError("OUTPUT_DIR is empty; --seeds needs a folder for its runs.")
    runs = {}
    for seed in args.seeds:
        folder = os.path.join(cfg.OUTPUT_DIR, f"seed{seed}")
        own = ["SEED", str(seed), "OUTPUT_DIR", folder]
        if cfg.WANDB.ENABLED:  # all would be listed as seed1, seed2, ... otherwise
            own += ["WANDB.NAME", f"{cfg.WANDB.NAME or os.path.basename(os.path.abspath(cfg.OUTPUT_DIR))}_seed{seed}"]
        kept = [
            word for key, value in zip(args.opts[::2], args.opts[1::2]) if key not in own[::2] for word in (key, value)
        ]
        runs[folder] = argparse.Namespace(**{**vars(args), "seeds": [], "opts": [*kept, *own]})
    return runs


def train_each(main: Callable[[argparse.Namespace], int], runs: dict[str, argparse.Namespace]) -> int:
    """Call ``main(args)`` for each run in a new process, until one fails.

    With ``--resume`` finished runs are passed over, and others go on or begin. Signals reach the run that is on.

    Args:
        main: importable; returns an exit code.
        runs: of :func:`runs_of_seeds`.

    Returns:
        The exit code of the last process.
    """
    for number, (folder, args) in enumerate(runs.items(), start=1):
        if args.resume and os.path.isfile(os.path.join(folder, FINAL)):
            print(f"{folder} is finished.")
            continue
        print(f"Run {number} of {len(runs)}: {folder}", flush=True)
        context: Any = multiprocessing.get_context(START_METHOD)
        process = context.Process(target=_one, args=(main, args))

        def pass_on(
            number: int, frame: FrameType | None, process: multiprocessing.process.BaseProcess = process
        ) -> None:
            if process.pid is not None and process.is_alive() and sys.platform != "win32":  # see launch_run
                os.kill(process.pid, number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            process.start()
            process.join()
        finally:
            for signal_number, handler in before.items():
                signal.signal(signal_number, handler)
        code = process.exitcode or 0
        if code:
            rest = len(runs) - number
            print(f"{folder} ended with exit code {code}; {rest} runs behind it were not started.", file=sys.stderr)
            return code if code > 0 else 128 - code
    return 0


def _one(main: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> None:
    if hasattr(os, "setsid"):  # else Ctrl-C on a terminal would reach it twice: a second one stops a step in its middle
        os.setsid()
    sys.exit(main(args))
