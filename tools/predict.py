"""Detect on images, folders, glob patterns, videos and cameras; write images, videos, COCO results and tables."""

import sys

from d2_ext.cli.predict import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
