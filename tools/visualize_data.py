"""Draw training images with their ground truth as the detector gets them: cropped, scaled, flipped, augmented."""

import sys

from d2_ext.cli.visualize_data import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
