"""Weights & Biases beside TensorBoard: the same scalars, images and histograms, in one run however often resumed."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.durable import write_durably
from d2_ext.engine.hooks import EarlyStopped
from d2_ext.errors import ConfigError, install_hint

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

__all__ = ["WandbWriter", "import_wandb"]

logger = logging.getLogger(__name__)

ID_FILE = "wandb_run_id.txt"
STEP = "iteration"  # the x axis, as in metrics.json; the package's own steps could not go back to a checkpoint
MAX_BINS = 512  # of wandb.Histogram


def import_wandb() -> Any:
    """The package.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"WANDB.ENABLED is True, but the package wandb cannot be imported ({error}). "
            f"{install_hint('wandb')}, or set WANDB.ENABLED False."
        ) from error
    return wandb


class WandbWriter(EventWriter):
    """Logs what the event storage holds to a run of Weights & Biases.

    It has to be called before the ``TensorboardXWriter``, which empties the storage of its images.

    Args:
        cfg: ``WANDB`` and ``OUTPUT_DIR`` are used; the whole of it is logged as the run's config.
        window_size: iterations of the median for scalars with a smoothing hint, as of the other writers.

    Raises:
        ConfigError: if the package is not installed.
    """

    def __init__(self, cfg: CfgNode, window_size: int = 20) -> None:
        self._wandb = import_wandb()
        self._cfg = cfg
        self._window_size = window_size
        self._last_write = -1
        self._run: Any = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WandbWriter | None:
        """The writer on the main process if ``WANDB.ENABLED``, else None."""
        return cls(cfg) if cfg.WANDB.ENABLED and comm.is_main_process() else None

    def start(self, *, resumed: bool) -> None:
        """Start the run, before the first iteration.

        Args:
            resumed: go on with the run that ``OUTPUT_DIR`` was logged to, if there is one.

        Raises:
            ConfigError: if the package refuses, for example without a login.
        """
        keys, output = self._cfg.WANDB, Path(self._cfg.OUTPUT_DIR)
        known = None
        if resumed:
            with contextlib.suppress(OSError):
                known = (output / ID_FILE).read_text(encoding="utf-8").strip() or None
        try:
            self._run = self._wandb.init(
                project=keys.PROJECT,
                name=keys.NAME or output.resolve().name,
                mode=keys.MODE or None,
                dir=str(output),
                config=yaml.safe_load(self._cfg.dump()),
                **({} if known is None else {"id": known, "resume": "allow"}),
            )
        except self._wandb.Error as error:
            raise ConfigError(
                f"WANDB.ENABLED is True, but the run cannot be started: {error} Log in with `wandb login`, or set "
                "WANDB.MODE offline."
            ) from error
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        write_durably(output / ID_FILE, lambda file: file.write(f"{self._run.id}\n".encode()))
        where = self._run.url or f"{output}/wandb (offline; upload with `wandb sync`)"
        logger.info("Weights & Biases run %s %s: %s", self._run.id, "resumed" if known else "started", where)

    def write(self) -> None:
        """Log the scalars that are new since the last time, and the images and histograms of the storage."""
        if self._run is None:
            return
        storage = get_event_storage()
        rows: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                rows[iteration][name] = value
        self._last_write = max(rows, default=self._last_write)
        # As Detectron2's TensorboardXWriter does; there is no public way to them.
        for name, image, iteration in storage._vis_data:
            rows[iteration][name] = self._wandb.Image(_as_image(image))
        for histogram in storage._histograms:
            rows[histogram["global_step"]][histogram["tag"]] = self._wandb.Histogram(np_histogram=_bins(histogram))
        for iteration in sorted(rows):
            self._run.log({STEP: iteration, **rows[iteration]})

    def close(self) -> None:
        """End the run; it counts as failed if this is called while an error or a signal ends the training."""
        if self._run is not None:
            stopped_by = sys.exc_info()[1]  # hooks are told of the end by a `finally` of the loop
            self._run.finish(exit_code=0 if stopped_by is None or isinstance(stopped_by, EarlyStopped) else 1)
            self._run = None


def _as_image(image: Any) -> np.ndarray:
    """(3, H, W), uint8 or float 0..1, as (H, W, 3) uint8."""
    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def _bins(histogram: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of at most 512 bins; neighbors are joined where there are more."""
    counts = np.asarray(histogram["bucket_counts"])
    edges = np.asarray([histogram["min"], *histogram["bucket_limits"]])
    joined = -(-len(counts) // MAX_BINS)
    starts = np.arange(0, len(counts), joined)
    return np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])
