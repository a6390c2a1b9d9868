"""Turn published weights into a checkpoint of d2_ext, or one of d2_ext into a file to pass on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_ext.checkpoint import SOURCES, convert
from d2_ext.checkpoint.durable import save_durably
from d2_ext.checkpoint.safe import read_checkpoint
from d2_ext.checkpoint.safetensors_file import write_safetensors
from d2_ext.cli.command import command_parser, run_command
from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError

EXAMPLES = """examples:
  GFL-CEASC of the original code:
    python tools/convert_checkpoint.py --source ceasc-mmdet --input gfl_ceasc_visdrone.pth \\
        --config-file configs/VisDrone/gfl_ceasc_R18_FPN512.yaml --output gfl_ceasc_visdrone_d2.pth
  the same as a start for three other classes, without its class predictor:
    python tools/convert_checkpoint.py --source ceasc-mmdet --input gfl_ceasc_visdrone.pth --drop-head \\
        --config-file configs/UAVDT/gfl_ceasc_R18_FPN512.yaml --output start.pth
  ImageNet weights of torchvision, renamed without a look at a model:
    python tools/convert_checkpoint.py --source torchvision --input resnet18-f37072fd.pth --output R18.pth
  a trained model without optimizer and history, half the size, in a format that cannot hold code:
    python tools/convert_checkpoint.py --source d2_ext --input output/quickstart/model_final.pth --half \\
        --output quickstart.safetensors

exit codes: 0 done, 1 a file cannot be used or written, 2 wrong usage
"""


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--source", required=True, choices=sorted(SOURCES), help="where the weights come from")
    parser.add_argument("--input", required=True, type=Path, help=".pth, .safetensors or .pkl; no code of it is run")
    parser.add_argument("--output", required=True, type=Path, help=".pth or .safetensors file to write")
    parser.add_argument("--half", action="store_true", help="store large weights as float16 (.safetensors only)")
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
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), convert_file, argv)


def convert_file(args: argparse.Namespace) -> None:
    """Convert, write, and print what fits.

    Raises:
        ConfigError: wrong usage.
        CheckpointError: the file cannot be used.
        TrainingError: the output cannot be written.
    """
    if args.opts and not args.config_file:
        raise ConfigError(f"{' '.join(args.opts)} changes a config, but there is none. Add --config-file FILE.")
    if args.output.suffix not in (".pth", ".safetensors"):
        raise ConfigError(f"--output {args.output}: expected a name that ends in .pth or .safetensors.")
    if args.half and args.output.suffix != ".safetensors":
        raise ConfigError(f"--half: {args.output.name} keeps float32. Choose an --output that ends in .safetensors.")
    if args.output.exists() and not args.overwrite:
        raise ConfigError(f"--output {args.output} exists. Choose another name, or add --overwrite.")
    cfg = load_config(args.config_file, args.opts) if args.config_file else None
    content = read_checkpoint(str(args.input))
    converted = convert(content, source=args.source, cfg=cfg, drop_head=args.drop_head)
    author, names = f"d2_ext, from {args.source}", [str(name) for name in content.get("class_names") or ()]
    if args.output.suffix == ".safetensors":
        write_safetensors(args.output, converted, class_names=names, metadata={"author": author}, half=args.half)
    else:
        save_durably({"model": dict(converted), "__author__": author, "class_names": names}, args.output)
    report = converted.report
    groups = {"matched": report.matched}
    if report.compared:
        groups |= {"missing": report.missing, "unexpected": report.unexpected}
        groups["wrong shape"] = [f"{k}: {a} in the file, {b} in the model" for k, (a, b) in report.misshaped.items()]
    for title, names in groups.items():
        print(f"{title}: {len(names)}", *(f"  {name}" for name in names), sep="\n")
    if not report.compared:
        print("Not compared with a model: give --config-file to do so.")
    print(f"Wrote {args.output}; use it with MODEL.WEIGHTS {args.output}")
