"""Try learning rates: draw the loss over a rate that rises from step to step, and propose one."""

import sys

from d2_ext.cli.lr_find import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
