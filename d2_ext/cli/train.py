"""Train, resume or evaluate a detector: ``python train_net.py --config-file configs/...yaml``."""

from __future__ import annotations

import argparse
import logging
import sys

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.engine import Trainer, argument_parser, build_config, setup
from d2_ext.engine.command_line import config_of_file
from d2_ext.engine.dry_run import dry_run
from d2_ext.engine.earlier_run import keep_earlier_run
from d2_ext.engine.hooks import Interrupted, use_averaged_weights
from d2_ext.engine.outputs import log_outputs
from d2_ext.engine.parallel import launch_training
from d2_ext.engine.preflight import check_run, count_processes
from d2_ext.engine.print_config import config_text
from d2_ext.engine.run_record import record_start
from d2_ext.engine.user_errors import explain
from d2_ext.errors import ConfigError

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def main(args: argparse.Namespace) -> None:
    """Run in every process: train, or evaluate ``MODEL.WEIGHTS`` (or, with ``--resume``, the last checkpoint)."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.whole = bool(cfg.MODEL.WEIGHTS)
        use_averaged_weights(cfg, model, checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume))
        record_start(cfg.OUTPUT_DIR, seed=cfg.SEED, first_iteration=None)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
            Trainer.write_images(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    if comm.is_main_process():
        log_outputs(cfg.OUTPUT_DIR)


def try_out(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Do everything once and say what the run will cost."""
    if args.eval_only or args.resume:
        raise ConfigError("--dry-run tries a training from its start. Leave --eval-only and --resume out.")
    for name in ("d2_ext", "detectron2", "fvcore"):
        setup_logger(name=name).setLevel(logging.ERROR)  # the evaluation of three images says nothing
    cost = dry_run(cfg, count_processes(args))
    print(f"Everything works. Nothing was written to {cfg.OUTPUT_DIR}; the run will cost:\n{cost.text(cfg)}")


def run(argv: list[str] | None = None) -> int:
    """Parse the command line and launch; returns the exit code.

    2 is wrong usage, 1 data, a checkpoint or a run that failed, 130 Ctrl-C, 143 SIGTERM.
    """
    args = argument_parser().parse_args(argv)
    try:
        cfg = build_config(args)
        if args.print_config:
            print(config_text(cfg, config_of_file(args.config_file), config_of_file("")), end="")
            return 0
        check_run(cfg, processes=count_processes(args), eval_only=args.eval_only, resume=args.resume)
        if args.dry_run:
            try_out(cfg, args)
        else:
            if not (args.eval_only or args.resume):
                keep_earlier_run(cfg, args)
            launch_training(main, args)
    except Interrupted as stopped:
        print(f"{stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("Stopped before the first iteration; nothing was lost.", file=sys.stderr)
        return 130
    except Exception as error:
        code, message = explain(error)
        if code is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(run())
