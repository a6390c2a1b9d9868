"""What a run left behind, read without trusting it: files may be missing, cut off, or written by strangers."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.files import read_yaml

KNOWN_FILES = ("config.yaml", "metrics.json", "log.txt")
_EVALUATION = re.compile(r"(?:(?P<dataset>.+)/)?(?P<task>bbox|visdrone|crowdhuman)/(?P<metric>[^/]+)")


@dataclass(frozen=True)
class RunFolder:
    """A run folder.

    Attributes:
        path: of the folder.
        config: content of ``config.yaml``; empty if there is none or it cannot be read (``config_problem`` says why).
        config_problem: empty if the config was read.
        metrics: rows of ``metrics.json`` in the order of their ``iteration``, one per iteration: a resumed run writes
            some again, and the later counts.
        damaged_lines: of ``metrics.json`` that were skipped, e.g. a last one that was cut off.
        log: ``log.txt``, empty if there is none.
    """

    path: Path
    config: dict[str, Any]
    config_problem: str
    metrics: list[dict[str, Any]]
    damaged_lines: int
    log: str

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the config by its dotted key."""
        value: Any = self.config
        for word in key.split("."):
            if not isinstance(value, dict) or word not in value:
                return default
            value = value[word]
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number of the config; the default for anything else."""
        value = self.setting(key, default)
        return value if _is_finite(value) else default

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations and finite values of one scalar."""
        rows = [(row["iteration"], row[name]) for row in self.metrics if _is_finite(row.get(name))]
        return [i for i, _ in rows], [float(value) for _, value in rows]

    def last(self, name: str) -> float | None:
        """Last value of a scalar, None if it was never written."""
        values = self.series(name)[1]
        return values[-1] if values else None

    def names(self, prefix: str) -> list[str]:
        """Names of scalars that start with a prefix, sorted."""
        return sorted({name for row in self.metrics for name in row if name.startswith(prefix)})

    def evaluations(self) -> dict[tuple[str, str], dict[str, str]]:
        """By (data set, task): metric -> name of its scalar. The data set is empty if the run has only one."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for name in self.names(""):
            match = _EVALUATION.fullmatch(name)
            if match:
                found.setdefault((match["dataset"] or "", match["task"]), {})[match["metric"]] = name
        return found

    def test_sets(self) -> list[str]:
        """Names of ``DATASETS.TEST``."""
        value = self.setting("DATASETS.TEST", ())
        if isinstance(value, str):  # files of Detectron2 write tuples as text, ``('a', 'b')``
            value = re.findall(r"['\"]([^'\"]+)['\"]", value)
        return [str(name) for name in value] if isinstance(value, list | tuple) else []

    def inference_folder(self, dataset: str) -> Path:
        """Where the trainer puts the predictions on a test set."""
        folder = self.path / "inference"
        return folder if len(self.test_sets()) == 1 else folder / dataset

    def weights(self) -> Path:
        """The final weights, whether they are there or not."""
        return self.path / "model_final.pth"

    def evaluate_command(self) -> str:
        """The command that evaluates the final weights and writes the predictions."""
        folder = self.path.as_posix()
        options = ["MODEL.WEIGHTS", self.weights().as_posix(), "OUTPUT_DIR", folder]
        command = ["d2_ext", "train", "--config-file", f"{folder}/config.yaml", "--eval-only", *options]
        return shlex.join(command)

    def train_command(self) -> str:
        """The command that trains into this folder."""
        config = self.recipe_name() or "RECIPE.yaml"
        return shlex.join(["d2_ext", "train", "--config-file", config, "OUTPUT_DIR", self.path.as_posix()])

    def recipe_name(self) -> str:
        """The config file that was given on the command line, as the log has it; empty if it does not say."""
        found = re.findall(r"Command line arguments: Namespace\(config_file='([^'\n]*)'", self.log)
        return found[-1] if found else ""


def read_run(folder: str | Path) -> RunFolder:
    """Read a run folder.

    Raises:
        ConfigError: if there is no such folder, or nothing in it comes from a run.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(
            f"There is no run folder {path.resolve()}. Give the OUTPUT_DIR of a training, such as output/quickstart."
        )
    if not any((path / name).is_file() for name in KNOWN_FILES):
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise ConfigError(
            f"{path.resolve()} is no run folder: it has none of {', '.join(KNOWN_FILES)}; it holds {inside}. "
            "Give the OUTPUT_DIR of a training."
        )
    config, problem = {}, f"There is no {path / 'config.yaml'}."
    if (path / "config.yaml").is_file():
        try:
            content = read_yaml(path / "config.yaml")
            is_config = isinstance(content, dict)
            config, problem = (content, "") if is_config else ({}, f"{path / 'config.yaml'} holds no keys.")
        except ConfigError as error:
            problem = str(error)

    texts = dict.fromkeys(("metrics.json", "log.txt"), "")
    for name in texts:
        if (path / name).is_file():
            texts[name] = (path / name).read_text(encoding="utf-8", errors="replace")
    rows: dict[int, dict[str, Any]] = {}
    damaged = 0
    for line in texts["metrics.json"].splitlines():
        try:
            row = json.loads(line)
            iteration = int(row["iteration"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            damaged += bool(line.strip())
            continue
        # An evaluation may add a second line of the same iteration.
        rows[iteration] = {**rows.get(iteration, {}), **row}
    metrics = [rows[iteration] for iteration in sorted(rows)]
    return RunFolder(path, config, problem, metrics, damaged, texts["log.txt"])


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
