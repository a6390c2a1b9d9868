"""The trainer, predictor and set-up that most projects need."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn

from . import hooks
from ._setup import create_ddp_model, default_argument_parser, default_setup, default_writers
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "DefaultPredictor",
    "DefaultTrainer",
]


class DefaultPredictor:
    """Detects on one image at a time, with the model and weights of a config.

    Args:
        cfg: ``MODEL.WEIGHTS``, ``INPUT.FORMAT`` and the sizes for testing are used.

    Attributes:
        metadata: of the first of ``DATASETS.TEST``; missing if there is none.
        model: in evaluation mode.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()  # the caller may go on changing the one it gave
        self.model = self._load_model()
        for dataset_name in cfg.DATASETS.TEST[:1]:
            self.metadata = MetadataCatalog.get(dataset_name)
        sizes = cfg.INPUT
        self.aug = T.ResizeShortestEdge([sizes.MIN_SIZE_TEST, sizes.MIN_SIZE_TEST], sizes.MAX_SIZE_TEST)
        self.input_format = sizes.FORMAT
        assert self.input_format in ("RGB", "BGR"), self.input_format

    def _load_model(self) -> torch.nn.Module:
        """The config's model with its weights, in evaluation mode."""
        model = build_model(self.cfg).eval()
        DetectionCheckpointer(model).load(self.cfg.MODEL.WEIGHTS)
        return model

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Detect.

        Args:
            original_image: (H, W, 3), BGR whatever ``INPUT.FORMAT`` says, 0..255.

        Returns:
            The model's result for this image, with boxes in px of it.
        """
        picture = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        pixels = self.aug.get_transform(picture).apply_image(picture).astype("float32")
        record = dict(zip(("height", "width"), original_image.shape))
        record["image"] = torch.as_tensor(pixels.transpose(2, 0, 1))
        (detected,) = self.model([record])
        return detected


class DefaultTrainer(TrainerBase):
    """Builds everything from a config and trains; override the ``build_*`` methods to change a part.

    The loop of this class calls the hooks; the steps are run by ``_trainer``, which has none of them.

    Args:
        cfg: the whole config.

    Attributes:
        cfg: scaled by :meth:`auto_scale_workers`.
        scheduler: of the learning rate.
        checkpointer: saves model and trainer to ``OUTPUT_DIR``.
        model, data_loader, optimizer: those of ``_trainer``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):  # nobody has set it up
            setup_logger()
        scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self._trainer = self._build_step_runner(scaled)
        self.scheduler = self.build_lr_scheduler(scaled, self._trainer.optimizer)
        self.checkpointer = DetectionCheckpointer(self._trainer.model, scaled.OUTPUT_DIR, trainer=weakref.proxy(self))
        # build_hooks, which a subclass may override, finds everything above and these three.
        self.cfg, self.start_iter, self.max_iter = scaled, 0, scaled.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def _build_step_runner(self, cfg: CfgNode) -> SimpleTrainer:
        """The trainer that runs single steps, with model, optimizer and loader built in this order."""
        bare_model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, bare_model)  # before the wrapper changes the parameters' names
        loader = self.build_train_loader(cfg)
        runner = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        return runner(create_ddp_model(bare_model, broadcast_buffers=False), loader, optimizer)

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR`` if there is one, else load ``MODEL.WEIGHTS`` only.

        Args:
            resume: False never looks for a checkpoint.
        """
        saver = self.checkpointer
        saver.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        resumed = resume and saver.has_checkpoint()
        if resumed:
            self.start_iter = self.iter + 1  # the checkpoint holds the iteration that was finished

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks, in the order in which they are called.

        Statistics of batch norms come before the checkpoint that should hold them, the checkpoint before an
        evaluation that may fail, and the writers last, so that they see the results.
        """
        saving: list[HookBase] = []
        writing: list[HookBase] = []
        if comm.is_main_process():
            saving = [hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD)]
            writing = [hooks.PeriodicWriter(self.build_writers(), period=20)]
        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_and_keep_results)
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._build_precise_bn(),
            *saving,
            evaluation,
            *writing,
        ]

    def _test_and_keep_results(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _build_precise_bn(self) -> HookBase | None:
        if not self.cfg.TEST.PRECISE_BN.ENABLED:
            return None
        from fvcore.nn.precise_bn import get_bn_modules  # lazy: fvcore.nn compiles functions when it is imported

        if not get_bn_modules(self.model):
            return None
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)  # its own one: the training must see the same batches as without
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def build_writers(self) -> list[EventWriter]:
        """The writers of events."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> dict | None:  # type: ignore[override]
        """Train.

        Returns:
            The last results, on the main process and if ``TEST.EXPECTED_RESULTS`` asks to verify them.
        """
        super().train(self.start_iter, self.max_iter)
        if not (len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process()):
            return None
        assert hasattr(self, "_last_eval_results"), "No evaluation results obtained during training!"
        verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, on its device."""
        model = build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The schedule, stepped once an iteration."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """The data loader of ``DATASETS.TRAIN``."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """The data loader of one of ``DATASETS.TEST``."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator | None:
        """The evaluator of one of ``DATASETS.TEST``; a subclass has to say which.

        Raises:
            NotImplementedError: here; :meth:`test` then skips the data set with a warning.
        """
        raise NotImplementedError(
            "DefaultTrainer does not know how to evaluate. Override build_evaluator(cfg, dataset_name) in a subclass, "
            "or pass evaluators to DefaultTrainer.test."
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate a model on ``DATASETS.TEST``.

        Args:
            cfg: the whole config.
            model: with its weights.
            evaluators: one for each data set; from :meth:`build_evaluator` for None.

        Returns:
            Results by data set; the results themselves if there is one data set only.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None:
            assert len(names) == len(evaluators), f"{len(names)} != {len(evaluators)}"
        results: dict[str, Any] = OrderedDict()
        for index, name in enumerate(names):
            results[name] = cls._test_one(cfg, model, name, evaluators[index] if evaluators is not None else None)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def _test_one(
        cls, cfg: CfgNode, model: nn.Module, dataset_name: str, evaluator: DatasetEvaluator | None
    ) -> dict[str, Any]:
        logger = logging.getLogger(__name__)
        data_loader = cls.build_test_loader(cfg, dataset_name)
        if evaluator is None:
            try:
                evaluator = cls.build_evaluator(cfg, dataset_name)
            except NotImplementedError:
                logger.warning(
                    "No evaluator found. Use `DefaultTrainer.test(evaluators=)`, or implement its `build_evaluator` "
                    "method."
                )
                return {}
        results = inference_on_dataset(model, data_loader, evaluator)
        if comm.is_main_process():
            assert isinstance(results, dict), (
                f"Evaluator must return a dict on the main process. Got {results} instead."
            )
            logger.info(f"Evaluation results for {dataset_name} in csv format:")
            print_csv_format(results)
        return results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale a config that was written for ``SOLVER.REFERENCE_WORLD_SIZE`` processes to another number.

        With s the ratio of the numbers: batch and learning rate are multiplied by s; iterations, steps, warm-up and
        periods are divided by it, so each process keeps its batch size (arXiv:1706.02677, section 2.1).

        Returns:
            A new config; the same object if nothing is to be scaled (a reference of 0 never is).
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        assert cfg.SOLVER.IMS_PER_BATCH % reference == 0, "Invalid REFERENCE_WORLD_SIZE in config!"
        was_frozen = cfg.is_frozen()
        cfg = cfg.clone()
        cfg.defrost()
        solver, scale = cfg.SOLVER, num_workers / reference
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR *= scale
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers
        logging.getLogger(__name__).info(
            f"Auto-scaling the config to batch_size={solver.IMS_PER_BATCH}, learning_rate={solver.BASE_LR}, "
            f"max_iter={solver.MAX_ITER}, warmup={solver.WARMUP_ITERS}."
        )
        if was_frozen:
            cfg.freeze()
        return cfg


def _forwarded(name: str) -> property:
    """A property that reads and writes the attribute of ``_trainer``."""
    return property(lambda self: getattr(self._trainer, name), lambda self, value: setattr(self._trainer, name, value))


for _name in ("model", "data_loader", "optimizer"):
    setattr(DefaultTrainer, _name, _forwarded(_name))
