"""Turn published weights into a checkpoint of d2_ext, and say what fits the model of a config."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from d2_ext.checkpoint import SOURCES, Conversion, convert
from d2_ext.checkpoint.safe import read_checkpoint
from d2_ext.engine import build_config
from d2_ext.errors import CheckpointError, ConfigError

import torch

EXAMPLES = """examples:
  GFL-CEASC of the original code:
    python tools/convert_checkpoint.py --source ceasc-mmdet --input gfl_ceasc_visdrone.pth \\
        --config-file configs/VisDrone/gfl_ceasc_R18_FPN512.yaml --output gfl_ceasc_visdrone_d2.pth
  the same as a start for three other classes, without its class predictor:
    python tools/convert_checkpoint.py --source ceasc-mmdet --input gfl_ceasc_visdrone.pth --drop-head \\
        --config-file configs/UAVDT/gfl_ceasc_R18_FPN512.yaml --output start.pth
  ImageNet weights of torchvision, renamed without a look at a model:
    python tools/convert_checkpoint.py --source torchvision --input resnet18-f37072fd.pth --output R18.pth

exit codes: 0 done, 1 a file cannot be used or written, 2 wrong usage
"""


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, choices=sorted(SOURCES), help="where the weights come from")
    parser.add_argument("--input", required=True, type=Path, help=".pth or .pkl file; no code of it is run")
    parser.add_argument("--output", required=True, type=Path, help=".pth file to write")
    parser.add_argument(
        "--config-file", default="", help="of the model that is to load them; without it nothing is compared"
    )
    parser.add_argument(
        "--drop-head", action="store_true", help="leave out weights of the head that the model cannot use"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    try:
        _check_paths(args)
        cfg = build_config(args) if args.config_file else None
    except ConfigError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 2
    try:
        converted = convert(read_checkpoint(str(args.input)), source=args.source, cfg=cfg, drop_head=args.drop_head)
        _write(converted, args.output)
    except (CheckpointError, OSError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 1
    _print_report(converted)
    print(f"Wrote {args.output}; use it with MODEL.WEIGHTS {args.output}")
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    if args.opts and not args.config_file:
        raise ConfigError(f"{' '.join(args.opts)} changes a config, but there is none. Add --config-file FILE.")
    if args.output.suffix != ".pth":
        raise ConfigError(f"--output {args.output}: expected a name that ends in .pth.")
    if args.output.exists() and not args.overwrite:
        raise ConfigError(f"--output {args.output} exists. Choose another name, or add --overwrite.")


def _write(converted: Conversion, output: Path) -> None:
    """Write the file whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"model": dict(converted), "__author__": f"d2_ext, from {converted.report.source}"}, file)
        os.chmod(temporary, 0o644)  # a temporary file is for its owner only
        os.replace(temporary, output)
    except BaseException:
        os.unlink(temporary)
        raise


def _print_report(converted: Conversion) -> None:
    report = converted.report
    groups = {"matched": report.matched}
    if report.compared:
        groups |= {"missing": report.missing, "unexpected": report.unexpected}
        groups["wrong shape"] = [f"{k}: {a} in the file, {b} in the model" for k, (a, b) in report.misshaped.items()]
    for title, names in groups.items():
        print(f"{title}: {len(names)}")
        for name in names:
            print(f"  {name}")
    if not report.compared:
        print("Not compared with a model: give --config-file to do so.")


if __name__ == "__main__":
    sys.exit(main())
