"""Training: configs from the command line, the trainer, its hooks, and what a run leaves behind."""

from d2_ext.engine.command_line import argument_parser, build_config, setup
from d2_ext.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "build_config", "setup"]
