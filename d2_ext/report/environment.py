"""Where the run was made, as its log says, and where the report was."""

from __future__ import annotations

import platform
import re

from d2_ext.report.blocks import Block, MissingInput, Table, Verbatim
from d2_ext.report.run_folder import RunFolder

import torch

_BLOCK = re.compile(r"Environment info:\s*\n(?P<text>.*?)(?=\n\[\d\d/\d\d |\Z)", re.DOTALL)
MAX_LINES = 60


def environment_blocks(run: RunFolder) -> list[Block]:
    """Detectron2's environment report out of the log.

    Raises:
        MissingInput: if the log has none.
    """
    found = _BLOCK.findall(run.log)
    if not found:
        raise MissingInput(f"There is no environment in {run.path / 'log.txt'}.", run.train_command())
    lines = found[-1].strip().splitlines()
    return [Verbatim("\n".join(lines[:MAX_LINES]))]


def report_environment() -> Table:
    """Versions of the machine that made the report, which also built the model for the counts."""
    rows = [
        ["Python", platform.python_version()],
        ["PyTorch", str(torch.__version__)],
        ["machine", f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"],
    ]
    return Table("The report itself was made with", ["what", "version"], rows, texts=2)
