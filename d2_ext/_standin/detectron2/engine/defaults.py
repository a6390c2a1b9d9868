"""The trainer, predictor and set-up that most projects need."""

from __future__ import annotations

import argparse
import logging
import os
import sys
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
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import hooks
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "DefaultPredictor",
    "DefaultTrainer",
]

_EXAMPLES = """
Examples:

One machine:
    $ {program} --config-file cfg.yaml --num-gpus 8

Other values for some keys:
    $ {program} --config-file cfg.yaml SOLVER.BASE_LR 0.001 MODEL.WEIGHTS /path/to/weight.pth

Two machines:
    (machine0)$ {program} --num-machines 2 --machine-rank 0 --dist-url <URL> [...]
    (machine1)$ {program} --num-machines 2 --machine-rank 1 --dist-url <URL> [...]
"""


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap a model for several processes; one process gets the model itself.

    Args:
        model: on the device of this process; a model on the CPU is wrapped without device.
        fp16_compression: send gradients as float16.
        kwargs: of ``DistributedDataParallel``.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs and any(parameter.is_cuda for parameter in model.parameters()):
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of the common arguments of training scripts.

    Args:
        epilog: text below the help; examples by default.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(program=sys.argv[0]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs (processes) of each machine")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    # The same port for all runs of a user: processes left over from a failed run are noticed.
    user = os.getuid() if sys.platform != "win32" else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where the processes of a run meet")
    parser.add_argument(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        help="at the end: config keys and values, KEY VALUE KEY VALUE ...",
    )
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up folder, loggers and seeds; log the environment and the config, and write it to ``config.yaml``.

    Args:
        cfg: the whole config.
        args: command line; ``config_file`` and ``eval_only`` are read if they exist.
    """
    if not isinstance(cfg, CfgNode):
        raise TypeError(f"default_setup of the stand-in takes a CfgNode, not {type(cfg).__name__} (LazyConfig).")
    output_dir, rank = cfg.get("OUTPUT_DIR"), comm.get_rank()
    is_writing = comm.is_main_process() and bool(output_dir)
    if is_writing:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)

    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info("Command line arguments: " + str(args))
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as file:
            logger.info(f"Contents of args.config_file={config_file}:\n{file.read()}")
    if is_writing:
        logger.info(f"Running with full config:\n{cfg.dump()}")
        path = os.path.join(output_dir, "config.yaml")
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
        logger.info(f"Full config saved to {path}")

    seed = cfg.get("SEED", -1)
    seed_all_rng(None if seed < 0 else seed + rank)  # processes differ, runs do not
    if not getattr(args, "eval_only", False):  # not worth its start-up for an evaluation
        torch.backends.cudnn.benchmark = cfg.get("CUDNN_BENCHMARK", False)
    precision = cfg.get("FLOAT32_PRECISION", "")
    if precision:
        _set_float32_precision(precision, logger)


def _set_float32_precision(precision: str, logger: logging.Logger) -> None:
    """Set the precision of products and convolutions on CUDA: "highest" is full, "high" and "medium" are less."""
    logger.info(f"Set fp32 precision to {precision}")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"
    logger.info(f"{torch.get_float32_matmul_precision()=}")
    logger.info(f"{torch.backends.cuda.matmul.allow_tf32=}")
    logger.info(f"{torch.backends.cudnn.allow_tf32=}")


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the terminal, to ``metrics.json`` and to TensorBoard.

    Args:
        output_dir: is created.
        max_iter: length of the run, for the time that remains.
    """
    PathManager.mkdirs(output_dir)
    json_file = os.path.join(output_dir, "metrics.json")
    return [CommonMetricPrinter(max_iter), JSONWriter(json_file), TensorboardXWriter(output_dir)]


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
        if self.input_format == "RGB":
            original_image = original_image[:, :, ::-1]
        height, width = original_image.shape[:2]
        resized = self.aug.get_transform(original_image).apply_image(original_image)
        image = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return self.model([{"image": image, "height": height, "width": width}])[0]


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
