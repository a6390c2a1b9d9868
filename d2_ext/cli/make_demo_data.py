"""Draw synthetic drone images with COCO labels into a folder, or a contact sheet of them.

The built-in names synthetic_drone_train and synthetic_drone_val need no call of this: they are drawn on first use.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, run_command
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.files import replacing
from d2_ext.synthetic.config import CLASS_COLORS, CLASSES, SIDE_RANGE_PX, SPLITS, SyntheticConfig
from d2_ext.synthetic.scene import Image, make_image
from d2_ext.synthetic.writer import build_split, is_complete

import cv2
import numpy as np

EXAMPLES = """examples:
  500 + 100 images around 320 px, as the quick start uses them:
    python tools/make_demo_data.py --output datasets/demo
  2000 large images of another seed, on 4 cores:
    python tools/make_demo_data.py --output datasets/big --num-train 2000 --size 1280x720 --seed 7 --processes 4
  one image that shows twelve labeled scenes:
    python tools/make_demo_data.py --contact-sheet sheet.jpg

exit codes: 0 done, 1 the output cannot be written, 2 wrong usage
"""
MAX_SHEET_BYTES = 200_000
SHEET_SIZE = (320, 320)


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--output", type=Path, help="folder that gets train/ and val/")
    parser.add_argument("--num-train", type=int, default=SyntheticConfig.num_train, help="images (%(default)s)")
    parser.add_argument("--num-val", type=int, default=SyntheticConfig.num_val, help="images (%(default)s)")
    low, high = SIDE_RANGE_PX
    parser.add_argument(
        "--size",
        type=_size,
        action="append",
        metavar="WxH",
        help=f"image size, each side {low} to {high} px; may be given several times (a mix around 320x320)",
    )
    parser.add_argument("--seed", type=int, default=SyntheticConfig.seed, help="another seed, other images")
    parser.add_argument("--empty-fraction", type=float, default=SyntheticConfig.empty_fraction, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="the bytes do not depend on it (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace other synthetic data in the output folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="draw twelve scenes into a jpg or png")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), make, argv)


def make(args: argparse.Namespace) -> None:
    """Draw what the command line asks for.

    Raises:
        ConfigError: wrong usage.
        DatasetError: the output cannot be written.
    """
    if args.output is None and args.contact_sheet is None:
        raise ConfigError("Nothing to do. Give --output FOLDER, --contact-sheet FILE, or --help for examples.")
    config = SyntheticConfig(
        num_train=args.num_train,
        num_val=args.num_val,
        sizes=tuple(args.size) if args.size else SyntheticConfig.sizes,
        seed=args.seed,
        empty_fraction=args.empty_fraction,
    )
    if args.contact_sheet is not None:
        write_contact_sheet(args.contact_sheet, config.seed)
    if args.output is None:
        return
    output = args.output.absolute()
    print(f"Output: {output}")
    for split in SPLITS:
        folder = output / split
        if folder.exists() and not is_complete(folder, config):
            if not (folder / "fingerprint.json").is_file():
                raise ConfigError(
                    f"{folder} exists and is not made by this tool, so it is not touched. Give another --output."
                )
            if not args.overwrite:
                raise ConfigError(
                    f"{folder} holds synthetic data of another recipe. Give another --output or --overwrite."
                )
        drawn = build_split(config, folder, split, processes=args.processes, progress=not args.quiet)
        print(f"{config.count(split)} images {'drawn into' if drawn else 'were already in'} {folder}")
    print(f"Register them: d2_ext.data.register_coco_folder('demo_train', '{output / 'train'}')")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write width x height in px, such as 384x256")
    return int(match.group(1)), int(match.group(2))


def write_contact_sheet(path: Path, seed: int, *, columns: int = 4, rows: int = 3) -> None:
    """Draw labeled scenes of all layouts and lights into one image below 200 KB.

    Args:
        path: .jpg or .png.
        seed: of the data.
        columns: scenes across.
        rows: scenes down.

    Raises:
        ConfigError: for another file type.
        DatasetError: if the file cannot be written.
    """
    if path.suffix.lower() not in (".jpg", ".png"):
        raise ConfigError(f"--contact-sheet {path}: no image type {path.suffix!r}. Write a name that ends in .jpg.")
    config = SyntheticConfig(sizes=(SHEET_SIZE,), seed=seed)
    tiles = [_draw(image) for image in _varied(config, columns * rows)]
    lines = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    sheet = np.vstack([*lines, _legend(lines[0].shape[1])])
    for quality in range(90, 20, -5):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix.lower() == ".jpg" else []
        data = cv2.imencode(path.suffix, sheet, options)[1]
        if len(data) < MAX_SHEET_BYTES or not options:
            break
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data.tobytes())
    except OSError as error:
        raise DatasetError(f"{path.absolute()} cannot be written: {error}. Give a path that can be.") from error
    print(f"Contact sheet: {path.absolute()} ({len(data) / 1000:.0f} KB)")


def _varied(config: SyntheticConfig, count: int) -> list[Image]:
    """The first images of val that repeat no pair of place and light; crowds and empty ones are left out."""
    chosen: dict[tuple[str, str], Image] = {}
    for index in range(20 * count):
        image = make_image(config, "val", index)
        if 6 <= len(image.labels) <= 60:
            chosen.setdefault((image.layout, image.light), image)
        if len(chosen) == count:
            break
    return list(chosen.values())


def _draw(image: Image) -> np.ndarray:
    tile = image.pixels.copy()
    for label in image.labels:
        x, y, width, height = label.box
        color = CLASS_COLORS[label.category][::-1] if label.counted else (150, 150, 150)
        cv2.rectangle(tile, (int(x) - 1, int(y) - 1), (round(x + width), round(y + height)), color, 1)
    return cv2.copyMakeBorder(tile, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _legend(width: int) -> np.ndarray:
    line = np.full((26, width, 3), 255, np.uint8)
    entries = [*zip(CLASSES, CLASS_COLORS), ("mostly hidden: not counted", (150, 150, 150))]
    x = 8
    for name, color in entries:
        cv2.rectangle(line, (x, 7), (x + 12, 19), color[::-1], -1)
        cv2.putText(line, name, (x + 18, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
        x += 40 + 9 * len(name)
    return line
