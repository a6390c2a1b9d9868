"""Parameters and multiply-adds of a model by part and pyramid level, sparse heads at a share of active positions."""

import sys

from d2_ext.cli.analyze_model import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
