"""A small local web page: drop an image, choose a checkpoint, a score threshold and the mask overlay."""

import sys

from d2_ext.cli.demo import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
