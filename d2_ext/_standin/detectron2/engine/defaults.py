"""The ordinary way through a project: command line, set-up, model, training, evaluation and prediction by a config."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import weakref
from itertools import chain, repeat
from operator import attrgetter
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2 import data, solver
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import hooks
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

_USER = os.getuid() if hasattr(os, "getuid") else 0  # a port of its own for each user of a machine, see RFC 6335
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "--config-file": {"default": "", "metavar": "FILE", "help": "YAML file to merge into the defaults"},
    "--resume": {"action": "store_true", "help": "go on from the last checkpoint in OUTPUT_DIR, if there is one"},
    "--eval-only": {"action": "store_true", "help": "evaluate without training"},
    "--num-gpus": {"type": int, "default": 1, "help": "processes on this machine, one for each GPU"},
    "--num-machines": {"type": int, "default": 1, "help": "machines that train together"},
    "--machine-rank": {"type": int, "default": 0, "help": "number of this machine, from 0"},
    "--dist-url": {
        "default": f"tcp://127.0.0.1:{range(49152, 65536)[_USER % 16384]}",
        "help": "where several processes meet; 'auto': at a free port of this machine",
    },
    "opts": {"nargs": argparse.REMAINDER, "help": "config keys and their values: KEY VALUE KEY VALUE ..."},
}


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap a model for training in several processes, on its device; one process gets the model itself.

    ``fp16_compression`` exchanges gradients as float16; ``kwargs`` are those of ``DistributedDataParallel``.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    replica = DistributedDataParallel(model, **{"device_ids": [device] if device.type == "cuda" else None, **kwargs})
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        replica.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return replica


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of a training script; ``epilog`` stands below the help, an example if not given."""
    epilog = epilog or f"Example: {os.path.basename(sys.argv[0])} --config-file my.yaml --num-gpus 2 SEED 1"
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, options in _ARGUMENTS.items():
        parser.add_argument(name, **options)
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What a script does first: make ``OUTPUT_DIR``, log to it, write ``config.yaml`` there and seed the generators.

    ``SEED`` plus the rank is the seed of a process; below 0 it is random. Of the command line, ``config_file`` is
    logged, and ``eval_only`` keeps cuDNN from benchmarking.
    """
    folder, writes = cfg.OUTPUT_DIR, bool(cfg.OUTPUT_DIR) and comm.is_main_process()
    if writes:
        PathManager.mkdirs(folder)
    loggers = {name: setup_logger(folder, comm.get_rank(), name=name) for name in ("fvcore", "detectron2")}
    logger = loggers["detectron2"]
    logger.info("Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    if config_file := getattr(args, "config_file", ""):
        with PathManager.open(config_file) as file:
            logger.info("Contents of args.config_file=%s:\n%s", config_file, file.read())
    logger.info("Running with full config:\n%s", cfg.dump())
    if writes:
        path = os.path.join(folder, "config.yaml")
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
        logger.info("Full config saved to %s", path)
    seed_all_rng(cfg.SEED + comm.get_rank() if cfg.SEED >= 0 else None)
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Make the writers of the log (which estimates the time left to ``max_iter``), ``metrics.json`` and TensorBoard."""
    PathManager.mkdirs(output_dir)
    return [CommonMetricPrinter(max_iter), JSONWriter(f"{output_dir}/metrics.json"), TensorboardXWriter(output_dir)]


class DefaultPredictor:
    """Detects in one image at a time, with the model, ``MODEL.WEIGHTS`` and ``INPUT`` sizes of a config.

    ``metadata`` is that of the first of ``DATASETS.TEST`` and missing if there is none; ``input_format`` is the order
    of channels that the model wants, RGB or BGR (else AssertionError).
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ("RGB", "BGR"), f"INPUT.FORMAT is {self.input_format!r}; expected 'RGB' or 'BGR'."
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge((cfg.INPUT.MIN_SIZE_TEST,) * 2, cfg.INPUT.MAX_SIZE_TEST)
        if cfg.DATASETS.TEST:
            self.metadata = data.MetadataCatalog.get(cfg.DATASETS.TEST[0])

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """The model's output for an image (H x W x 3, BGR whatever the model wants), in pixels of this image."""
        pixels = original_image if self.input_format == "BGR" else original_image[..., ::-1]
        resized = self.aug.get_transform(pixels).apply_image(pixels)
        channels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(resized, -1, 0)))
        size = dict(zip(("height", "width"), original_image.shape))
        (found,) = self.model([{"image": channels.to(self.cfg.MODEL.DEVICE, torch.float32), **size}])
        return found


def _of_inner_trainer(name: str) -> property:
    """A property of ``DefaultTrainer`` that reads and writes the attribute ``name`` of the trainer inside it."""

    def assign(self: DefaultTrainer, value: Any) -> None:
        setattr(self._trainer, name, value)

    return property(attrgetter(f"_trainer.{name}"), assign, doc=f"``{name}`` of the inner trainer.")


class DefaultTrainer(TrainerBase):
    """Trains, saves and evaluates what a config describes, with parts of ``build_...`` methods that may be overridden.

    Iterations are run by an inner trainer, a ``SimpleTrainer`` or with ``SOLVER.AMP.ENABLED`` an ``AMPTrainer``;
    therefore ``after_backward`` of hooks that are registered here is not called.

    The model may be wrapped for several processes; ``cfg`` is fitted to their number, see ``auto_scale_workers``. A
    checkpoint has ``model``, ``trainer`` and ``iteration``.
    """

    _last_eval_results: dict[str, Any] | None = None
    model = _of_inner_trainer("model")
    optimizer = _of_inner_trainer("optimizer")
    data_loader = _of_inner_trainer("data_loader")

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # in a notebook, say, where nobody called default_setup
        self.cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.max_iter = self.cfg.SOLVER.MAX_ITER
        self._trainer = self._inner_trainer()
        self.scheduler = self.build_lr_scheduler(self.cfg, self.optimizer)
        self.checkpointer = DetectionCheckpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def _inner_trainer(self) -> SimpleTrainer:
        """Build what an iteration needs. Model, optimizer and loader may draw random numbers, in this order."""
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        batches = self.build_train_loader(self.cfg)
        kind = AMPTrainer if self.cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        return kind(create_ddp_model(model, broadcast_buffers=False), batches, optimizer)

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on behind the last checkpoint of ``OUTPUT_DIR``, with the state of optimizer and hooks, if ``resume`` is
        True and there is one; else only load the weights ``MODEL.WEIGHTS``."""
        self.iter = -1  # unless a checkpoint knows the last finished iteration
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        self.start_iter = self.iter = self.iter + 1

    def build_hooks(self) -> list[HookBase | None]:
        """Make the hooks, in the order in which they are called: saving before evaluating, writing last."""
        if self.cfg.TEST.PRECISE_BN.ENABLED:
            raise NotImplementedError("TEST.PRECISE_BN.ENABLED needs Detectron2 itself. Set it to False.")
        trainer, cfg = weakref.proxy(self), self.cfg

        def evaluate() -> dict[str, Any]:
            trainer._last_eval_results = trainer.test(trainer.cfg, trainer.model)
            return trainer._last_eval_results

        saving: HookBase | None = None
        writing: HookBase | None = None
        if comm.is_main_process():
            saving = hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            writing = hooks.PeriodicWriter(self.build_writers())
        evaluating = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate)
        return [hooks.IterationTimer(), hooks.LRScheduler(), saving, evaluating, writing]

    def build_writers(self) -> list[EventWriter]:
        """Make the writers of the log and of files."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> dict | None:  # type: ignore[override]
        """Train from ``start_iter`` on.

        On the main process, if ``TEST.EXPECTED_RESULTS`` asks for it, the last results are verified (SystemExit if
        they are not as expected) and returned.
        """
        super().train(self.start_iter, self.max_iter)
        checked = comm.is_main_process() and bool(self.cfg.TEST.EXPECTED_RESULTS)
        return self._last_eval_results if checked and verify_results(self.cfg, self._last_eval_results) else None

    def run_step(self) -> None:
        """One iteration of the inner trainer."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """That of :class:`TrainerBase`, and ``_trainer``, the inner trainer's."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of the config and log it."""
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    # To be overridden by class methods of the same names: (cfg, model), (cfg, optimizer), (cfg), (cfg, dataset_name).
    build_optimizer = staticmethod(solver.build_optimizer)
    build_lr_scheduler = staticmethod(solver.build_lr_scheduler)
    build_train_loader = staticmethod(data.build_detection_train_loader)
    build_test_loader = staticmethod(data.build_detection_test_loader)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator | None:
        """Build the evaluator of a data set; to be overridden by trainers that evaluate (NotImplementedError)."""
        raise NotImplementedError(
            f"{cls.__name__} has no build_evaluator(cfg, {dataset_name!r}). Define it, for example with "
            "COCOEvaluator(dataset_name), or leave DATASETS.TEST empty."
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate a model on ``DATASETS.TEST``, with ``evaluators`` (one for each data set) or ``build_evaluator``'s.

        Gives the results by data set, or just the results where there is one data set; they are empty on other
        processes than the main one and for data sets without evaluator.
        """
        names = cfg.DATASETS.TEST
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        assert given is None or len(given) == len(names), f"{len(given or [])} evaluators for {len(names)} data sets."
        by_name = {name: cls._test_one(cfg, model, name, one) for name, one in zip(names, given or repeat(None))}
        return by_name[names[0]] if len(by_name) == 1 else by_name

    @classmethod
    def _test_one(cls, cfg: CfgNode, model: nn.Module, name: str, evaluator: DatasetEvaluator | None) -> dict[str, Any]:
        logger = logging.getLogger(__name__)
        batches = cls.build_test_loader(cfg, name)
        if evaluator is None:
            try:
                evaluator = cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("%s is not evaluated: %s", name, error)
                return {}
        results = inference_on_dataset(model, batches, evaluator)
        if comm.is_main_process():
            logger.info("Evaluation results for %s in csv format:", name)
            print_csv_format(results)
        return results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Fit a config that was made for ``SOLVER.REFERENCE_WORLD_SIZE`` processes to another number of them.

        Batch size (an AssertionError if it is no multiple of the reference) and learning rate grow in proportion;
        iteration numbers and periods shrink, so that the run sees as many images as before. Gives a changed copy, or
        ``cfg`` itself if the reference is 0 or this number.
        """
        solver, reference = cfg.SOLVER, cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        assert solver.IMS_PER_BATCH % reference == 0, (
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is no multiple of SOLVER.REFERENCE_WORLD_SIZE {reference}."
        )
        factor = num_workers / reference
        shorter = {"TEST.EVAL_PERIOD": cfg.TEST.EVAL_PERIOD}
        shorter.update({f"SOLVER.{key}": solver[key] for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")})
        changes = {
            "SOLVER.REFERENCE_WORLD_SIZE": num_workers,
            "SOLVER.IMS_PER_BATCH": round(solver.IMS_PER_BATCH * factor),
            "SOLVER.BASE_LR": solver.BASE_LR * factor,
            "SOLVER.STEPS": tuple(round(step / factor) for step in solver.STEPS),
            **{key: round(value / factor) for key, value in shorter.items()},
        }
        logging.getLogger(__name__).info("For %d instead of %d processes: %s", num_workers, reference, changes)
        scaled = cfg.clone()
        scaled.defrost()
        scaled.merge_from_list(list(chain.from_iterable(changes.items())))
        if cfg.is_frozen():
            scaled.freeze()
        return scaled
