"""The trainer of d2_ext: Detectron2's ``DefaultTrainer``, also for several processes without GPUs."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.data.loader import build_train_loader
from d2_ext.data.mapper import TestMapper
from d2_ext.data.records import naming_unreadable
from d2_ext.data.reproducible import TrainLoader, raise_if_a_worker_died
from d2_ext.engine import hooks
from d2_ext.engine.determinism import set_deterministic
from d2_ext.engine.loss_guard import LossGuard
from d2_ext.engine.model_card import MODEL_CARD, write_model_card
from d2_ext.engine.optimizer import build_optimizer
from d2_ext.engine.parallel import wrap_data_parallel
from d2_ext.engine.precision import choose_precision
from d2_ext.engine.progress import ProgressBar
from d2_ext.engine.step import StepTrainer
from d2_ext.engine.validation_loss import validation_loss
from d2_ext.engine.wandb_writer import WandbWriter
from d2_ext.errors import ConfigError, TrainingError
from d2_ext.evaluation import MaskRecallEvaluator, SkippedTilesEvaluator, build_evaluator
from d2_ext.files import replacing
from d2_ext.inference import tiled_if_set, without_resizing
from d2_ext.visualization import write_images

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.engine.hooks import EvalHook, HookBase, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter
from torch import nn

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` with the evaluators, mapper, clipping and checkpoints of d2_ext.

    Evaluators are chosen by data set; the training loader knows ignore regions, tiles and albumentations;
    ``CLIP_TYPE: "full_model"`` is understood; checkpoints are read without running code from them; mixed precision
    works on the CPU, in bfloat16; and several processes work on the CPU (over gloo) as they do on GPUs.

    A run that was interrupted and resumed ends with the weights of one that was not (docs/determinism.md); signals,
    broken files and losses that are not finite end it in good order. The keys of ``d2_ext.config.run`` add averaged
    weights, accumulated gradients, the best weights and early stopping.

    Args:
        cfg: a frozen config with the keys of :func:`d2_ext.add_d2_ext_config`.

    Raises:
        ConfigError: for values of these keys that cannot work.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor wraps the model for GPUs only, so its steps are taken here; the order of
        # model, optimizer and loader is its order, since each draws from the seeded generators.
        TrainerBase.__init__(self)
        self._given_cfg = cfg
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        set_deterministic(cfg.DETERMINISTIC)
        self._randomness = hooks.RandomNumbersOfStep(cfg.SEED)
        self._stop = hooks.StopOnSignal()
        self._wandb = WandbWriter.from_config(cfg)
        model = self.build_model(cfg)
        self._average = hooks.AveragedWeights.from_config(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        wrapped = wrap_data_parallel(model)
        class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", ())
        self.checkpointer = SafeCheckpointer(
            model, cfg.OUTPUT_DIR, class_names=class_names, trainer=weakref.proxy(self)
        )
        self._trainer = StepTrainer(
            *(wrapped, loader, optimizer),
            precision=choose_precision(next(model.parameters()).device.type, mixed=cfg.SOLVER.AMP.ENABLED),
            guard=LossGuard(cfg.SOLVER.NONFINITE_LOSS, self.checkpointer.last_good),
            accumulate=cfg.SOLVER.ACCUMULATE_BATCHES,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._bare_model = model
        self.register_hooks(self.build_hooks())

    def train(self) -> dict | None:
        """Train from ``start_iter`` on.

        Returns:
            The last results, on the main process and if ``TEST.EXPECTED_RESULTS`` asks to verify them.

        Raises:
            Interrupted: after SIGINT or SIGTERM, when everything is saved.
            TrainingError: for a loss that is not finite, a full disk, or a dead process that loaded data.
        """
        self._write_config()
        if isinstance(self._trainer.data_loader, TrainLoader):
            self._trainer.data_loader.start_at(self.start_iter * self._trainer.accumulate, self.seed)
        newest = self.checkpointer.get_checkpoint_file() if self.checkpointer.has_checkpoint() else ""
        if 0 < self.max_iter <= self.start_iter and not newest.endswith("model_final.pth"):
            # The run died between its last checkpoint and model_final, which has the same content: no step is left.
            self.iter = self.start_iter - 1
            self.checkpointer.save("model_final", iteration=self.iter)
        if self._wandb is not None:
            self._wandb.start(resumed=self.start_iter > 0)
        try:
            with self._stop.listening():
                try:
                    return super().train()
                except hooks.Interrupted as stopped:
                    # The state after the last finished step is saved. Behind the last iteration there is nothing left
                    # to save, and in the middle of a step nothing worth it.
                    if self.iter < self.max_iter and not stopped.mid_step:
                        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
                    comm.synchronize()
                    message = f"Stopped in iteration {self.iter}. {self.checkpointer.last_good()}"
                    raise hooks.Interrupted(stopped.number, message) from None
        except hooks.EarlyStopped:  # as DefaultTrainer.train does at its end
            results = getattr(self, "_last_eval_results", None)
            if not (results and len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process()):
                return None
            verify_results(self.cfg, results)
            return results
        except RuntimeError as error:
            raise_if_a_worker_died(error)
            raise
        except OSError as error:  # of the writers, whose errors at a full disk name no file
            if isinstance(error.__context__, TrainingError):  # after which the writers could not be closed
                raise error.__context__ from None
            place = error.filename or f"{self.cfg.OUTPUT_DIR}/metrics.json or the events of TensorBoard beside it"
            raise TrainingError(
                f"{place} could not be written: {error.strerror or error}. {self.checkpointer.last_good()} Make room, "
                "then continue with --resume."
            ) from error
        finally:
            loader = self._trainer.data_loader
            self._trainer.reset_data_loader(lambda: loader)  # ends its worker processes

    def after_train(self) -> None:
        """Let the hooks do what follows a training.

        Where a run that has reached its end is resumed, Detectron2's loop counts one iteration more than there were.
        """
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def _write_config(self) -> None:
        """Leave ``config.yaml`` in the run folder, which prediction and the report read, also without default_setup."""
        folder, text = Path(self.cfg.OUTPUT_DIR), self._given_cfg.dump()
        if not comm.is_main_process() or not self.cfg.OUTPUT_DIR or "://" in self.cfg.OUTPUT_DIR:
            return
        with contextlib.suppress(OSError):
            if (folder / "config.yaml").read_text(encoding="utf-8") == text:
                return
        with replacing(folder / "config.yaml") as path:
            path.write_text(text, encoding="utf-8")

    @property
    def seed(self) -> int:
        """Of the run; a resumed one has that of its checkpoint."""
        return self._randomness.seed

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``detectron2.modeling.build_model``; ``MODEL.CHANNELS_LAST`` sets its memory format."""
        model = super().build_model(cfg)
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`d2_ext.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """See :func:`d2_ext.data.loader.build_train_loader`; annotations that cannot be read any more are named."""
        with naming_unreadable(cfg.DATASETS.TRAIN):
            return build_train_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See :func:`d2_ext.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, cls.inference_folder(cfg, dataset_name))

    @classmethod
    def inference_folder(cls, cfg: CfgNode, dataset_name: str) -> str:
        """Folder for predictions on a data set and images of them."""
        folder = f"{cfg.OUTPUT_DIR}/inference"
        return folder if len(cfg.DATASETS.TEST) == 1 else f"{folder}/{dataset_name}"

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Build the test loader; with ``TEST.TILE.SIZE`` images keep their size, since tiles are resized instead.

        An image that cannot be read is named.
        """
        cfg = without_resizing(cfg)
        return build_detection_test_loader(cfg, dataset_name, mapper=TestMapper(cfg))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> dict[str, Any]:
        """Evaluate as ``DefaultTrainer`` does, on tiles if ``TEST.TILE.SIZE`` is set.

        Of a detector with sparse towers the recall of its masks is measured, too, but not on tiles: the box of an
        object in several tiles has no one place in the maps. With ``TEST.TILE.SELECT`` the results have the share of
        skipped tiles. With ``TEST.VAL_LOSS`` the results have ``val_loss``, in
        all processes.

        Raises:
            TrainingError: a file of the results cannot be written, as on a full disk.
            DatasetError: annotations cannot be read any more.
        """
        further: type[MaskRecallEvaluator] | type[SkippedTilesEvaluator] | None = None
        if cfg.TEST.TILE.SELECT:
            further = SkippedTilesEvaluator
        elif hasattr(model, "activation_masks") and not cfg.TEST.TILE.SIZE:
            further = MaskRecallEvaluator
        try:
            with naming_unreadable(cfg.DATASETS.TEST):
                if evaluators is None and further is not None:
                    evaluators = [
                        DatasetEvaluators([cls.build_evaluator(cfg, name), further(name)]) for name in cfg.DATASETS.TEST
                    ]
                results = super().test(cfg, tiled_if_set(cfg, model), evaluators)
        except OSError as error:  # Detectron2's evaluator names no file
            place = error.filename or f"a file below {cfg.OUTPUT_DIR}/inference"
            raise TrainingError(
                f"The evaluation could not read or write {place}: {error.strerror or error}. Make room, or choose "
                "another OUTPUT_DIR; the last checkpoint is as it was."
            ) from error
        if cfg.TEST.VAL_LOSS and cfg.DATASETS.TEST:
            results["val_loss"] = validation_loss(cfg, model)
        return results

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, and around them those of :mod:`d2_ext.engine.hooks`."""
        stock = [hook for hook in super().build_hooks() if hook is not None]
        first_saving = next(n for n, hook in enumerate(stock) if isinstance(hook, (PeriodicCheckpointer, EvalHook)))
        evaluating = next(n for n, hook in enumerate(stock) if isinstance(hook, EvalHook))
        trainer = weakref.proxy(self)  # a hook must not keep its trainer alive
        return [
            self._randomness,
            *([hooks.StarvedHint()] if hooks.StarvedHint.applies(self._bare_model) else []),
            *stock[:first_saving],
            hooks.LossNormalizers(self._bare_model),
            self._average,
            *stock[first_saving:evaluating],
            *([ProgressBar(self.cfg.TEST.EVAL_PERIOD)] if comm.is_main_process() else []),
            *self._evaluation_hooks(),
            hooks.MaskRecallWarning(self.cfg),
            *([hooks.MaskImages(self.cfg)] if self.cfg.TEST.MASK_PERIOD and comm.is_main_process() else []),
            *stock[evaluating + 1 :],
            hooks.ImagesAfterTraining(lambda: trainer._finish_outputs()),
            self._stop,
        ]

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's writers, and the one of Weights & Biases if ``WANDB.ENABLED``."""
        _end_last_line(Path(self.cfg.OUTPUT_DIR) / "metrics.json")
        writers = super().build_writers()
        if self._wandb is not None:
            before = next(n for n, writer in enumerate(writers) if isinstance(writer, TensorboardXWriter))
            writers.insert(before, self._wandb)
        return writers

    def _evaluation_hooks(self) -> list[HookBase]:
        """Evaluation of the averaged weights where there are any, and what goes by its results."""
        best, period, trainer = self.cfg.TEST.BEST, self.cfg.TEST.EVAL_PERIOD, weakref.proxy(self)
        if best.MODE not in ("max", "min"):
            raise ConfigError(f"TEST.BEST.MODE {best.MODE!r} is unknown. Expected 'max' or 'min'.")
        found: list[HookBase] = [hooks.Evaluation(period, lambda: trainer._evaluate())]
        if best.SAVE and comm.is_main_process():
            found.append(hooks.BestWeights(period, self._weights_file(), best.METRIC, best.MODE))
        if best.PATIENCE > 0:
            finish = functools.partial(self.checkpointer.save, "model_final")
            found.append(hooks.EarlyStop(period, best.METRIC, best.MODE, best.PATIENCE, finish))
        if period > 0 and (best.SAVE or best.PATIENCE > 0):
            found.append(hooks.RepeatEvaluation(period, found[:]))
        return found

    def _evaluate(self) -> dict[str, Any]:
        # Only inside: while weights are exchanged, a signal has to wait.
        with self._evaluated_weights(), self._stop.at_once():
            self._last_eval_results = self.test(self.cfg, self._bare_model)
        return self._last_eval_results

    @property
    def _evaluated_weights(self) -> Callable[[], AbstractContextManager]:
        return nullcontext if self._average is None else self._average.applied

    def _weights_file(self) -> hooks.WeightsFile:
        names = self.checkpointer.class_names
        return hooks.WeightsFile(self._bare_model, self.cfg.OUTPUT_DIR, self._evaluated_weights, names)

    def _finish_outputs(self) -> None:
        """On the main process, after the last evaluation."""
        if self._average is not None:
            self._weights_file().save("model_final_ema", iteration=self.max_iter - 1)
        with self._evaluated_weights():
            self.write_images(self.cfg, self._bare_model)
        folder = self.cfg.OUTPUT_DIR
        changed = self.start_iter < self.max_iter or not os.path.exists(f"{folder}/{MODEL_CARD}")
        if folder and "://" not in folder and changed:  # else it may have been edited
            results = getattr(self, "_last_eval_results", None)
            write_model_card(self.cfg, self._bare_model, self.checkpointer.class_names, self.max_iter, results)

    @classmethod
    def write_images(cls, cfg: CfgNode, model: nn.Module) -> list[str]:
        """Draw ``TEST.NUM_PICTURES`` images of each test set below the run folder; returns their paths."""
        written = []
        for name in cfg.DATASETS.TEST if cfg.TEST.NUM_PICTURES else ():
            folder = f"{cls.inference_folder(cfg, name)}/images"
            written += write_images(
                without_resizing(cfg), tiled_if_set(cfg, model), name, folder, count=cfg.TEST.NUM_PICTURES
            )
        return written


def _end_last_line(path: Path) -> None:
    """After a run that was killed or met a full disk in the middle of a line, the next line must not continue it."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
