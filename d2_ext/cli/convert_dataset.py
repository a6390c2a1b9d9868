"""Write a data set of any known format as COCO jsons: COCO-like, YOLO, VOC, labelme, VisDrone, UAVDT, CrowdHuman."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, run_command
from d2_ext.data.convert import IMAGES, MARKER, REGIONS, convert_folder
from d2_ext.data.folder import DEFAULT_HOLD_OUT, describe, register_folder
from d2_ext.data.formats import FORMATS
from d2_ext.errors import ConfigError

EXAMPLES = """examples:
  a folder, recognized, images linked (nothing is copied):
    python tools/convert_dataset.py --input datasets/demo --output datasets/demo_coco
  a copy that can be moved to another machine:
    python tools/convert_dataset.py --input datasets/demo --output datasets/demo_copy --images copy
  jsons alone, 30 % of a folder without splits held out for evaluation:
    python tools/convert_dataset.py --input datasets/demo/train --output datasets/demo_json \\
        --images leave --hold-out 0.3

exit codes: 0 done, 1 the folder cannot be used or written, 2 wrong usage
"""


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER", help="the data set")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets annotations/ and images/")
    parser.add_argument("--format", choices=list(FORMATS), default="", help="where the folder could be several")
    parser.add_argument("--images", choices=IMAGES, default="link", help="(%(default)s)")
    parser.add_argument(
        "--regions",
        choices=REGIONS,
        default="crowd",
        help="ignore regions: crowds of every class, or a class 'ignored', which --data knows (%(default)s)",
    )
    parser.add_argument(
        "--hold-out",
        type=float,
        default=DEFAULT_HOLD_OUT,
        metavar="SHARE",
        help="for evaluation where there is one split only (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the hold-out (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that this tool has made")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), convert, argv)


def convert(args: argparse.Namespace) -> None:
    """Convert, and say what was written and how to use it.

    Raises:
        ConfigError: wrong usage.
        DatasetError: the folder cannot be used or written.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not args.input.is_dir():
        raise ConfigError(f"--input: no folder '{args.input.absolute()}'.")
    if not 0 < args.hold_out < 1:
        raise ConfigError(f"--hold-out {args.hold_out}: expected a share between 0 and 1, such as 0.2.")
    source, target = args.input.resolve(), args.output.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise ConfigError(f"--output {args.output} and --input lie inside each other. Choose another output.")
    if args.output.exists():
        if not (args.output / MARKER).is_file():
            raise ConfigError(f"--output {args.output} exists and is not made by this tool. Choose another name.")
        if not args.overwrite:
            raise ConfigError(f"--output {args.output} exists. Choose another name, or add --overwrite.")
    print(f"Output: {args.output.absolute()}")
    own = register_folder(args.input, data_format=args.format, share=args.hold_out, seed=args.seed)
    print(describe(own))
    for split, count in convert_folder(own, args.output, images=args.images, regions=args.regions).items():
        print(f"{count:>7} images in {args.output.absolute() / 'annotations' / f'{split}.json'}")
    if args.images == "leave":
        root = own.data.root.absolute()
        print(f"File names are relative to {root}: give it as image_dir to register_coco_folder.")
    else:
        print(f"Train on it: d2_ext train --config-file CONFIG --data {args.output}")
