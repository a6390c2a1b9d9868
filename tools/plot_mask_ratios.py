"""Plot how much of the maps a sparse head computed during a training, level by level, beside the target."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_ext.errors import DatasetError
from d2_ext.files import replacing
from d2_ext.visualization.mask_ratios import plot_mask_ratios, read_mask_ratios

EXAMPLES = """examples:
  python tools/plot_mask_ratios.py output/quickstart/metrics.json
  python tools/plot_mask_ratios.py output/quickstart/metrics.json --output ratios.svg

exit codes: 0 done, 1 the file cannot be used, 2 wrong usage
"""
FORMATS = (".png", ".svg", ".pdf", ".jpg")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metrics", type=Path, help="metrics.json of a run")
    parser.add_argument(
        "--output", type=_image, default=None, help=f"{', '.join(FORMATS)} (mask_ratios.png beside the metrics)"
    )
    return parser


def _image(text: str) -> Path:
    if Path(text).suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends with one of {', '.join(FORMATS)}")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    output = args.output or args.metrics.with_name("mask_ratios.png")
    try:
        figure = plot_mask_ratios(read_mask_ratios(args.metrics), title=str(args.metrics.resolve().parent.name))
        with replacing(output) as temporary:
            figure.savefig(temporary, dpi=120)
    except (DatasetError, OSError) as error:
        print(f"plot_mask_ratios: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
