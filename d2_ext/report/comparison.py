"""Several runs on one page: mean and spread of their metrics, and their curves in one picture.

Runs whose configs differ in nothing but the seed, the folder and the logs are one group: their means say what a recipe
gives, their spread what is chance. Other differences are listed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2_ext.config.load import leaves
from d2_ext.errors import ConfigError
from d2_ext.files import replacing
from d2_ext.report.blocks import Block, Chart, Section, Table, Text, number
from d2_ext.report.charts import line_chart
from d2_ext.report.page import render
from d2_ext.report.run_folder import RunFolder, read_run
from d2_ext.report.training import MEANS, X_LABEL

from tabulate import tabulate

__all__ = ["comparison_text", "write_comparison"]

OWN_KEYS = ("SEED", "OUTPUT_DIR")  # and the section WANDB: a run may have its own
MAX_LINES = 8
HEADER = ["metric", "runs", "mean", "standard deviation", "lowest", "highest"]


@dataclass(frozen=True)
class Group:
    """Runs of one config, by their short names.

    Attributes:
        runs: name -> run.
        config: key -> value as text, without what each run has of its own.
    """

    runs: dict[str, RunFolder]
    config: dict[str, str]

    def rows(self) -> list[list[str]]:
        """Last value of each metric: how many runs have it, mean, standard deviation (n - 1), lowest and highest."""
        rows = []
        for metric in _metrics(list(self.runs.values())):
            values = [value for run in self.runs.values() if (value := run.last(metric)) is not None]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                figures = (statistics.mean(values), spread, min(values), max(values))
                digits = 4 if "loss" in metric else 2
                rows.append([metric, str(len(values)), *(number(value, digits) for value in figures)])
        return rows


def comparison_text(folders: Sequence[str | Path]) -> str:
    """Mean and spread of the last metrics of several runs as a table for a terminal; arguments as of the page."""
    groups = _read_groups(folders)
    parts = []
    for group in groups:
        table = tabulate(group.rows(), HEADER, tablefmt="github", disable_numparse=True)
        parts.append(table if len(groups) == 1 else f"{', '.join(group.runs)}:\n{table}")
    return "\n\n".join(parts)


def write_comparison(folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write the page that compares runs.

    Args:
        folders: run folders, at least two different ones.
        output: HTML file; its folder is made if it is not there.

    Returns:
        Path of the file.

    Raises:
        ConfigError: a folder is no run folder, or there are not two.
        OSError: the file cannot be written.
    """
    groups = _read_groups(folders)
    runs = {name: run for group in groups for name, run in group.runs.items()}
    sections = [
        Section("summary", "Mean and spread", _summary(groups)),
        Section("curves", "Curves", _curves(runs)),
        Section("runs", "Each run", [_each_run(runs)]),
        Section("config", "Configuration", _differences(groups)),
    ]
    page = render(f"{len(runs)} runs compared", ", ".join(map(str, folders)), sections)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(output)


def _read_groups(folders: Sequence[str | Path]) -> list[Group]:
    paths = list(dict.fromkeys(os.path.realpath(folder) for folder in folders))
    if len(paths) < 2:
        raise ConfigError(f"A comparison needs two run folders or more; {', '.join(map(str, folders))} is one.")
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    groups: list[Group] = []
    for path in paths:
        run = read_run(path)
        config = {key: str(value) for key, value in leaves(run.config)}
        config = {k: v for k, v in config.items() if k not in OWN_KEYS and not k.startswith("WANDB.")}
        group = next((group for group in groups if group.config == config), None)
        if group is None:
            group = Group({}, config)
            groups.append(group)
        group.runs[os.path.relpath(path, above)] = run
    return groups


def _metrics(runs: Sequence[RunFolder]) -> list[str]:
    """Names of scalars of evaluations, means of all classes first, then of single classes, then the losses."""
    found: dict[str, None] = {}
    for run in runs:
        for scalars in run.evaluations().values():
            found |= dict.fromkeys(scalars[metric] for metric in MEANS if metric in scalars)
    for run in runs:
        found |= dict.fromkeys(name for scalars in run.evaluations().values() for name in scalars.values())
        found |= dict.fromkeys([*run.names("val_loss/"), *run.names("total_loss")])
    return list(found)


def _summary(groups: Sequence[Group]) -> list[Block]:
    blocks: list[Block] = []
    for group in groups:
        rows, names = group.rows(), ", ".join(group.runs)
        if rows:
            blocks.append(Table(f"Last evaluation of {names}", HEADER, rows))
        else:
            blocks.append(Text(f"{names}: there are no metrics."))
    blocks.append(
        Text(
            "Runs of one table have the same config but for the seed. The standard deviation is that of the runs, not "
            "of their mean; from two or three of them it is a rough guess. AP in percent."
        )
    )
    return blocks


def _curves(runs: dict[str, RunFolder]) -> list[Block]:
    """A chart for the training loss, the validation loss, and AP of each test set; a line a run."""
    labels = {"total_loss": "training loss", "val_loss/total": "validation loss"}
    for run in runs.values():
        labels |= {scalars["AP"]: scalars["AP"] for scalars in run.evaluations().values() if "AP" in scalars}
    blocks: list[Block] = []
    for scalar, label in labels.items():
        lines = {name: run.series(scalar) for name, run in runs.items() if run.series(scalar)[0]}
        shown = dict(list(lines.items())[:MAX_LINES])
        if shown:
            more = f" The first {MAX_LINES} of {len(lines)} runs." if len(lines) > len(shown) else ""
            last = ", ".join(f"{name} {number(y[-1], 2)}" for name, (_, y) in shown.items())
            chart = line_chart(shown, x_label=X_LABEL, y_label=label, log="loss" in scalar)
            blocks.append(Chart(chart, f"{label} over the iterations. At the end: {last}.", f"{label}.{more}"))
    return blocks or [Text("There are no curves: metrics.json of these runs holds neither losses nor AP.")]


def _each_run(runs: dict[str, RunFolder]) -> Table:
    metrics = [
        name for name in _metrics(list(runs.values())) if name.rpartition("/")[2] in (*MEANS, "total", "total_loss")
    ]
    rows = []
    for name, run in runs.items():
        done = max((row["iteration"] for row in run.metrics if "total_loss" in row), default=None)
        iterations = "" if done is None else str(done + 1)
        rows.append([name, str(run.setting("SEED", "")), iterations, *(number(run.last(m), 2) for m in metrics)])
    return Table("Last values of each run", ["run", "SEED", "iterations", *metrics], rows)


def _differences(groups: Sequence[Group]) -> list[Block]:
    keys = sorted({key for group in groups for key in group.config})
    rows = [[key, *(group.config.get(key, "") for group in groups)] for key in keys]
    rows = [row for row in rows if len({*row[1:]}) > 1]
    if not rows:
        return [Text("The runs have the same config but for the seed, the folder and the logs.")]
    header = ["key", *(", ".join(group.runs) for group in groups)]
    return [Table("Keys in which the runs differ", header, rows, texts=len(header))]
