"""Train, resume or evaluate a detector. --num-gpus counts processes where there is no GPU."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.cli.command import add_import, import_modules, run_command, run_work, suggest_options
from d2_ext.config.load import merge_config
from d2_ext.config.recipes import find_recipe
from d2_ext.engine import Trainer
from d2_ext.engine.hooks import use_averaged_weights
from d2_ext.engine.progress import (
    LOGGERS,
    go_on_without_a_log,
    log_config_into_the_file_only,
    log_memory_of_the_process,
)
from d2_ext.errors import ConfigError
from d2_ext.files import replacing
from d2_ext.report.comparison import comparison_text
from d2_ext.runs.config import load_run_config, log_lr_scaling, log_own_data
from d2_ext.runs.dry_run import dry_run
from d2_ext.runs.earlier_run import keep_earlier_run
from d2_ext.runs.launching import count_processes, is_one_of_torchruns, launch_run, read_torchrun
from d2_ext.runs.lock import locked
from d2_ext.runs.outputs import log_outputs
from d2_ext.runs.preflight import check_run
from d2_ext.runs.print_config import config_text
from d2_ext.runs.record import record_start
from d2_ext.runs.seeds import read_seeds, runs_of_seeds, train_each
from d2_ext.runs.user_errors import log_user_errors_in_one_line

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

EXAMPLES = """examples:
  train on generated data, CPU, some minutes:
    python train_net.py --config-file configs/quickstart/retinanet_ceasc_R18_synthetic.yaml
  train on your own folder (COCO json, YOLO, Pascal VOC, labelme, VisDrone, UAVDT, CrowdHuman; docs/your_data.md):
    python train_net.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --data datasets/demo
  continue an interrupted run from its last checkpoint:
    python train_net.py --config-file configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml --num-gpus 8 --resume
  three runs that differ in their seed alone, into OUTPUT_DIR/seed1, seed2, seed3, and their means at the end:
    python train_net.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --seeds 1 2 3
  try a recipe before a long run: everything once, and what it will cost:
    python train_net.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --dry-run
  evaluate a checkpoint, other settings on the command line:
    python train_net.py --config-file configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml --eval-only \\
        MODEL.WEIGHTS output/visdrone_retinanet_ceasc_R18_FPN512/model_final.pth TEST.DETECTIONS_PER_IMAGE 100

exit codes: 0 done, 1 data, a checkpoint or a run failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line with ours."""
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        default="",
        help="own data set: its format, classes and splits are recognized and set; keys given as KEY VALUE win",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=[],
        metavar="SEED",
        help="train once with each of these seeds, one after the other, into OUTPUT_DIR/seed<n>",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, make two steps, evaluate three images, print the cost of the run, leave nothing",
    )
    instead.add_argument(
        "--print-config", action="store_true", help="print all keys as YAML, with a comment where one was changed"
    )
    add_import(parser)
    return suggest_options(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), check_and_launch, argv)


def check_and_launch(args: argparse.Namespace) -> int:
    """The first process of a run: nothing is written before everything that can be checked was checked.

    Returns:
        The exit code.

    Raises:
        ConfigError, DatasetError, CheckpointError, TrainingError: what stops the run.
    """
    try:
        read_seeds(args)
        read_torchrun(args)
        if not (args.config_file or args.print_config or "MODEL.META_ARCHITECTURE" in args.opts[::2]):
            raise ConfigError(
                "--config-file is missing: it names what to train. Give a YAML file or a recipe, such as "
                "quickstart/fcos_R18_synthetic.yaml; `d2_ext configs` lists all."
            )
        args.config_file = find_recipe(args.config_file)
        if args.seeds:
            return train_seeds(args)
        cfg = load_run_config(args.config_file, args.opts or (), data=args.data)
        if args.print_config:
            print(config_text(cfg, merge_config(args.config_file), merge_config("")), end="")
            return 0
        check_run(cfg, processes=count_processes(args), eval_only=args.eval_only, resume=args.resume)
        if args.dry_run:
            if args.eval_only or args.resume:
                raise ConfigError("--dry-run tries a training from its start. Leave --eval-only and --resume out.")
            for name in ("d2_ext", "detectron2", "fvcore"):
                setup_logger(name=name).setLevel(logging.ERROR)  # the evaluation of three images says nothing
            cost = dry_run(cfg, count_processes(args)).text(cfg)
            print(f"Everything works. Nothing was written to {cfg.OUTPUT_DIR}; the run will cost:\n{cost}")
            return 0
        with locked(cfg.OUTPUT_DIR if args.machine_rank == 0 else ""):  # one lock for all machines of a run
            if not (args.eval_only or args.resume):
                keep_earlier_run(cfg, args.config_file, machine_rank=args.machine_rank)
            return launch_run(train_or_evaluate, args)
    except KeyboardInterrupt:
        print("Stopped before the first iteration; nothing was lost.", file=sys.stderr)
        return 130


def train_seeds(args: argparse.Namespace) -> int:
    """Train once with each seed, and say what came out; returns the exit code.

    Raises:
        ConfigError: arguments that contradict each other.
    """
    if is_one_of_torchruns():
        raise ConfigError("--seeds starts its own processes; use --num-gpus in place of torchrun.")
    runs = runs_of_seeds(args)
    code = train_each(one_seed, runs)
    if code == 0 and args.machine_rank == 0:
        print(f"\n{comparison_text(list(runs))}\nAs a page, with curves: {shlex.join(['d2_ext', 'report', *runs])}")
    return code


def one_seed(args: argparse.Namespace) -> int:
    """One of these runs, in its own process; returns the exit code."""
    return run_work(check_and_launch, args)


def train_or_evaluate(args: argparse.Namespace) -> None:
    """Every process of a run: train, or evaluate ``MODEL.WEIGHTS`` (or, with ``--resume``, the last checkpoint)."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR, whole=bool(cfg.MODEL.WEIGHTS))
        use_averaged_weights(cfg, model, checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume))
        record_start(cfg.OUTPUT_DIR, seed=cfg.SEED, first_iteration=None)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
            Trainer.write_images(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        record_start(cfg.OUTPUT_DIR, seed=trainer.seed, first_iteration=trainer.start_iter)
        trainer.train()
    if comm.is_main_process():
        log_outputs(cfg.OUTPUT_DIR)


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config, make the run folder, start the loggers and seed the generators.

    What Detectron2's ``default_setup`` sets is set here, too, but ``config.yaml`` is whole or not there, and a log that
    cannot be written does not end a run.
    """
    import_modules(args.imports)  # each of several processes for itself
    cfg = load_run_config(args.config_file, args.opts or (), data=args.data)
    rank = comm.get_rank()
    log_config_into_the_file_only()
    for name in LOGGERS:
        setup_logger(cfg.OUTPUT_DIR, rank, name=name)
    go_on_without_a_log()
    log = logging.getLogger("detectron2")
    log.info("Process %d of %d", rank, comm.get_world_size())
    log.info("Environment info:\n%s", collect_env_info())
    log.info("Command line arguments: %s", args)
    if args.config_file:
        log.info("Config file %s:\n%s", args.config_file, Path(args.config_file).read_text(encoding="utf-8"))
    log.info("Full config:\n%s", cfg.dump())
    if cfg.OUTPUT_DIR and comm.is_main_process():
        with replacing(Path(cfg.OUTPUT_DIR) / "config.yaml") as path:
            path.write_text(cfg.dump(), encoding="utf-8")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    log_own_data(cfg)
    if not args.eval_only:
        log_lr_scaling(cfg, args.config_file)
    log_user_errors_in_one_line()
    log_memory_of_the_process()
    return cfg
