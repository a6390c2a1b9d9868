"""Check a data set of any known format: what is in it, and what is wrong with boxes, labels and images."""

import sys

from d2_ext.cli.check_dataset import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
