"""One HTML file about a run: curves, AP, confusion, images, masks, speed, operations, configuration, environment."""

import sys

from d2_ext.cli.report import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
