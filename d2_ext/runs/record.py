"""``run.json``: what is needed to repeat a run, beside the full config in ``config.yaml``."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

import d2_ext
from d2_ext.checkpoint.durable import write_durably
from d2_ext.utils.env import commit_of

import numpy as np
import torch
import torchvision
from detectron2.utils import comm

NAME = "run.json"


def record_start(output_dir: str, *, seed: int, first_iteration: int | None) -> None:
    """Add this start of the run to ``run.json``; a resumed run has several. Only the main process writes.

    Args:
        output_dir: the run folder.
        seed: of the run.
        first_iteration: 0, or where a resumed run goes on; None if nothing is trained.
    """
    if not (output_dir and comm.is_main_process()):
        return
    path = Path(output_dir) / NAME
    try:
        earlier = json.loads(path.read_text())["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    start = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "seed": seed,
        "first_iteration": first_iteration,
        "commit": commit_of(Path(d2_ext.__file__).parent),
        "environment": {
            "d2_ext": d2_ext.__version__,
            "detectron2": d2_ext.ensure_detectron2(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": comm.get_world_size(),
            "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        },
    }
    # A file that is not ours is started anew.
    starts = [*(earlier if isinstance(earlier, list) else []), start]
    write_durably(path, lambda file: file.write((json.dumps({"starts": starts}, indent=2) + "\n").encode()))


def resume_command() -> str:
    """This command line with ``--resume``."""
    script, *arguments = sys.argv
    python = os.path.basename(sys.executable)
    start = {"d2_ext": ["d2_ext"], "__main__.py": [python, "-m", "d2_ext"]}.get(os.path.basename(script))
    if start is None:
        start = [python, script]
    else:  # of the program of all commands: its flags stand behind the command
        start, arguments = [*start, *arguments[:1]], arguments[1:]
    flag = [] if "--resume" in arguments else ["--resume"]
    return shlex.join([*start, *flag, *arguments])
