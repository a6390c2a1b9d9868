"""Draw synthetic drone images with COCO labels into a folder, or a contact sheet of them."""

import sys

from d2_ext.cli.make_demo_data import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
