"""Is NMS needed? AP of models with and without it, and the score of the second-best box of every object."""

import sys

from d2_ext.cli.analyze_duplicates import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
