"""``--dry-run``: everything that a run does, done once, and what the whole of it will cost."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

from d2_ext.data.reproducible import TrainLoader
from d2_ext.engine.trainer import Trainer
from d2_ext.engine.validation_loss import validation_loss
from d2_ext.errors import ConfigError
from d2_ext.inference import tiled_if_set
from d2_ext.utils.analysis import count_on_images, totals
from d2_ext.utils.memory import peak_bytes

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

__all__ = ["Cost", "dry_run"]

STEPS = 2  # the first one warms up
TEST_IMAGES = 3


@dataclass(frozen=True)
class Cost:
    """What was measured.

    Attributes:
        detector: name of the model's class.
        parameters: of the model.
        multiply_adds: of one test image; None for models that cannot be counted.
        step_seconds: one iteration, its batch at hand.
        data_seconds: waiting for its batch.
        image_seconds: one test image with its reading, and its losses with ``TEST.VAL_LOSS``; 0 without a test set.
        test_images: of all test sets.
        memory: peak in bytes, see :func:`d2_ext.utils.memory.peak_bytes`.
    """

    detector: str
    parameters: int
    multiply_adds: float | None
    step_seconds: float
    data_seconds: float
    image_seconds: float
    test_images: int
    memory: int

    def text(self, cfg: CfgNode) -> str:
        """A table for the terminal, with what follows for the schedule of a config."""
        solver, period = cfg.SOLVER, cfg.TEST.EVAL_PERIOD
        counted = "" if self.multiply_adds is None else f", {self.multiply_adds / 1e9:.2f} G multiply-adds an image"
        evaluations = max(1, solver.MAX_ITER // period) if period > 0 else 1
        training = timedelta(seconds=round(solver.MAX_ITER * (self.step_seconds + self.data_seconds)))
        evaluation = timedelta(seconds=round(self.test_images * self.image_seconds))
        device = "of the GPU" if torch.cuda.is_available() else "of this process, without those that load data"
        rows = [
            ("detector", f"{self.detector}, {self.parameters / 1e6:.2f} M parameters{counted}"),
            ("iteration", f"{self.step_seconds:.2f} s, and {self.data_seconds:.2f} s of waiting for data"),
            ("training", f"about {training} for {solver.MAX_ITER} iterations (SOLVER.MAX_ITER)"),
            ("evaluation", f"about {evaluation} for {self.test_images} images, {evaluations} x in the run"),
            ("memory", f"{self.memory / 2**20:.0f} MB at most, {device}"),
        ]
        return tabulate(rows, tablefmt="plain")


def dry_run(cfg: CfgNode, processes: int = 1) -> Cost:
    """Build everything, take two batches, make a step on each, evaluate a few images; nothing of it stays.

    Args:
        cfg: checked and frozen.
        processes: of the run; this one process takes the share of one of them.

    Returns:
        What it cost. Times of two steps are a guess: the first iterations of a run are slower than the others.

    Raises:
        TrainingError: for losses that are not finite.
    """
    with tempfile.TemporaryDirectory(prefix="d2_ext_dry_run_") as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        cfg.SOLVER.IMS_PER_BATCH //= processes
        cfg.WANDB.ENABLED = False
        cfg.freeze()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        step_seconds, data_seconds = _train(trainer)
        image_seconds, test_images, multiply_adds = _evaluate(cfg, trainer.model)
    return Cost(
        detector=cfg.MODEL.META_ARCHITECTURE,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        multiply_adds=multiply_adds,
        step_seconds=step_seconds,
        data_seconds=data_seconds,
        image_seconds=image_seconds,
        test_images=test_images,
        memory=peak_bytes(),
    )


def _train(trainer: Trainer) -> tuple[float, float]:
    """Seconds of the last step without and of its waiting for data."""
    runner = trainer._trainer
    if isinstance(runner.data_loader, TrainLoader):
        runner.data_loader.start_at(0, seed=0)
    try:
        with EventStorage(0) as storage:
            for iteration in range(STEPS):
                runner.iter = storage.iter = iteration
                start = time.perf_counter()
                runner.run_step()
                seconds = time.perf_counter() - start
            waited = storage.history("data_time").latest()
    finally:
        loader = runner.data_loader
        runner.reset_data_loader(lambda: loader)  # ends its worker processes
    return seconds - waited, waited


def _evaluate(cfg: CfgNode, model: nn.Module) -> tuple[float, int, float | None]:
    """Seconds an image, images of all test sets, and multiply-adds of one image."""
    seconds, looked_at, images = 0.0, 0, 0
    all_tiles = cfg.clone()
    all_tiles.defrost()
    all_tiles.TEST.TILE.SELECT = 0  # a detector that is not trained yet would choose no tile
    multiply_adds: float | None = None
    for name in cfg.DATASETS.TEST:
        loader: Any = Trainer.build_test_loader(cfg, name)
        evaluator = Trainer.build_evaluator(cfg, name)
        images += len(loader.dataset)
        evaluator.reset()
        start = time.perf_counter()
        with inference_context(model), torch.no_grad():
            detector = tiled_if_set(all_tiles, model)
            for inputs in islice(loader, TEST_IMAGES):
                evaluator.process(inputs, detector(inputs))
                looked_at += len(inputs)
            seconds += time.perf_counter() - start
            # With tiles the image has its own size, and what is computed are tiles; two-stage models are not counted.
            if multiply_adds is None and not cfg.TEST.TILE.SIZE:
                with contextlib.suppress(ConfigError):
                    counts, _ = count_on_images(model, [inputs[0]])
                    multiply_adds = totals(counts)["total"].multiply_adds
        evaluator.evaluate()
        if cfg.TEST.VAL_LOSS and name == cfg.DATASETS.TEST[0]:
            start = time.perf_counter()
            validation_loss(cfg, model, max_images=TEST_IMAGES)
            seconds += time.perf_counter() - start
    return seconds / max(looked_at, 1), images, multiply_adds
