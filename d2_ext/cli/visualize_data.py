"""Draw training images with their ground truth as the detector gets them: cropped, scaled, flipped, augmented."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, number_in, run_command
from d2_ext.data.loader import build_train_mapper, training_records
from d2_ext.errors import ConfigError
from d2_ext.images import write_image
from d2_ext.runs.config import load_run_config
from d2_ext.visualization import contact_sheet, draw_ground_truth

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

EXAMPLES = """examples:
  sixteen images of a recipe's data, and a sheet of them:
    python tools/visualize_data.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --output output/look
  your own folder; the same image drawn four times shows what augmentation does:
    python tools/visualize_data.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --data datasets/demo \\
        --output output/look_own --count 4 --repeat 4
  tiles of large images:
    python tools/visualize_data.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --data datasets/demo \\
        --output output/look_tiles INPUT.TILES.ENABLED True INPUT.TILES.SIZE "[160, 160]"

exit codes: 0 done, 1 data unusable or nothing could be written, 2 wrong usage
"""
SHEET = "sheet.jpg"


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="recipe")
    parser.add_argument("--data", metavar="FOLDER", default="", help="own data set, as for train_net.py")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--count", type=number_in(int, 1), default=16, help="images (or tiles) to draw (%(default)s)")
    parser.add_argument(
        "--repeat", type=number_in(int, 1), default=1, help="times that each is augmented (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=number_in(int, 0, 2**32 - 1), default=0, help="of the choice and the augmentation (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), draw, argv)


def draw(args: argparse.Namespace) -> None:
    """Write the images and a sheet of them.

    Raises:
        ConfigError: wrong usage.
        DatasetError: the data cannot be used, or an image cannot be written.
    """
    cfg = load_run_config(args.config_file, args.opts, data=args.data)
    if args.output.is_file():
        raise ConfigError(f"--output {args.output} is a file. Expected a folder.")
    if args.output.is_dir() and any(args.output.iterdir()) and not args.overwrite:
        raise ConfigError(f"--output {args.output} holds files. Choose another folder, or add --overwrite.")
    print(f"Output: {args.output.absolute()}")
    seed_all_rng(args.seed)
    records, mapper = training_records(cfg), build_train_mapper(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    chosen = np.random.default_rng(args.seed).permutation(len(records))[: args.count]
    images = []
    for number, index in enumerate(tqdm(chosen, unit=" images", disable=args.quiet, leave=False)):
        stem = Path(records[index]["file_name"]).stem
        for again in range(args.repeat):
            image = draw_ground_truth(mapper(records[index]), metadata, cfg.INPUT.FORMAT)
            name = f"{number:03d}_{stem}" + (f"_{again}" if args.repeat > 1 else "") + ".jpg"
            write_image(args.output / name, image)
            images.append(image)
    write_image(args.output / SHEET, contact_sheet(images[:64]))
    print(f"Wrote {len(images)} images and {SHEET} to {args.output.absolute()}")
