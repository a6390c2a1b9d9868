"""Turn published weights into a checkpoint of d2_ext, and say what fits the model of a config."""

import sys

from d2_ext.cli.convert_checkpoint import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
