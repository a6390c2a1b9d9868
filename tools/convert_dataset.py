"""Write a data set of any known format as COCO jsons: COCO-like, YOLO, Pascal VOC, VisDrone, UAVDT, CrowdHuman."""

import sys

from d2_ext.cli.convert_dataset import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
