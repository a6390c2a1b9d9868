"""Train, resume or evaluate a detector: ``python train_net.py --config-file configs/...yaml``."""

import sys

from d2_ext.cli.train import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
