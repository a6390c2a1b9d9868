"""Command line, set-up of a run, writers of its events, and the wrapper for several processes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    wrapped = DistributedDataParallel(model, **({"device_ids": [comm.get_local_rank()]} if on_gpu else {}) | kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        wrapped.register_comm_hook(None, fp16_compress_hook)
    return wrapped


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of the common arguments of training scripts.

    Args:
        epilog: text below the help; examples by default.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(program=sys.argv[0]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # The same port for all runs of a user: processes left over from a failed run are noticed.
    user = os.getuid() if sys.platform != "win32" else 1
    meeting_point = f"tcp://127.0.0.1:{2**15 + 2**14 + hash(user) % 2**14}"
    options: dict[str, dict[str, Any]] = {
        "config-file": {"default": "", "metavar": "FILE", "help": "path to config file"},
        "resume": {"action": "store_true", "help": "go on from the last checkpoint in OUTPUT_DIR, if any"},
        "eval-only": {"action": "store_true", "help": "evaluate, do not train"},
        "num-gpus": {"type": int, "default": 1, "help": "number of GPUs (processes) of each machine"},
        "num-machines": {"type": int, "default": 1, "help": "number of machines"},
        "machine-rank": {"type": int, "default": 0, "help": "number of this machine, from 0"},
        "dist-url": {"default": meeting_point, "help": "where the processes of a run meet"},
    }
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
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
