"""Export a detector for use without Detectron2: one file, image in, boxes, scores and classes out."""

import sys

from d2_ext.cli.export import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
