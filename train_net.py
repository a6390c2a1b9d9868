"""Train, resume or evaluate a detector: ``python train_net.py --config-file configs/...yaml``."""

from __future__ import annotations

import argparse
import sys

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.engine import Trainer, argument_parser, build_config, setup
from d2_ext.engine.hooks import Interrupted, use_averaged_weights
from d2_ext.engine.outputs import log_outputs
from d2_ext.engine.parallel import exit_code, launch_training
from d2_ext.engine.run_record import record_start
from d2_ext.errors import CheckpointError, ConfigError, DatasetError, TrainingError

from detectron2.evaluation import verify_results
from detectron2.utils import comm


def main(args: argparse.Namespace) -> None:
    """Run in every process: train, or evaluate ``MODEL.WEIGHTS`` (or, with ``--resume``, the last checkpoint)."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        use_averaged_weights(cfg, model, checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume))
        record_start(cfg.OUTPUT_DIR, seed=cfg.SEED, first_iteration=None)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
            Trainer.write_pictures(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    if comm.is_main_process():
        log_outputs(cfg.OUTPUT_DIR)


def run(argv: list[str] | None = None) -> int:
    """Parse the command line and launch; returns the exit code.

    2 is wrong usage, 1 data, a checkpoint or a run that failed, 130 Ctrl-C, 143 SIGTERM.
    """
    args = argument_parser().parse_args(argv)
    try:
        build_config(args)  # before any process is started
        launch_training(main, args)
    except (ConfigError, CheckpointError, DatasetError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    except Interrupted as stopped:
        print(f"{stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("Stopped before the first iteration; nothing was lost.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
