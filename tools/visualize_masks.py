"""Draw where a sparse head computes: for each image a grid of its levels and branches, with the active shares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.data.inputs import read_input
from d2_ext.engine import build_config
from d2_ext.errors import CheckpointError, ConfigError, DatasetError
from d2_ext.files import replacing
from d2_ext.visualization import draw_masks

import cv2
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from torch import nn

EXAMPLES = """examples:
  python tools/visualize_masks.py --config-file output/quickstart/config.yaml \\
      --weights output/quickstart/model_final.pth --output masks street.jpg
  a trained model of the paper on two images, larger tiles:
    python tools/visualize_masks.py --config-file configs/VisDrone/gfl_ceasc_R18_FPN512.yaml \\
        --weights output/visdrone_gfl_ceasc_R18_FPN512/model_final.pth --output masks --tile-width 640 a.jpg b.jpg

exit codes: 0 done, 1 weights or an image cannot be used, 2 wrong usage
"""


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--config-file", required=True, help="of the model, or config.yaml of its run")
    parser.add_argument("--weights", required=True, help="checkpoint of the model")
    parser.add_argument("--output", type=Path, default=Path("masks"), help="folder for <name>_masks.jpg (masks)")
    parser.add_argument("--tile-width", type=int, default=320, help="px of one map in the grid (320)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config changes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    try:
        _check(args)
        cfg = build_config(args)
        model = build_model(cfg).eval()
        if not hasattr(model, "activation_masks"):
            raise ConfigError(f"--config-file {args.config_file}: {cfg.MODEL.META_ARCHITECTURE} has no sparse towers.")
        SafeCheckpointer(model).load(args.weights)
        for path in args.images:
            print(_draw(cfg, model, path, args))
    except ConfigError as error:
        print(f"visualize_masks: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DatasetError, OSError) as error:
        print(f"visualize_masks: {error}", file=sys.stderr)
        return 1
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.tile_width < 16:
        raise ConfigError(f"--tile-width {args.tile_width}: expected at least 16 px.")
    names = [path.stem for path in args.images]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"Several images are called {sorted(twice)[0]!r}; give them different names.")


def _draw(cfg: CfgNode, model: nn.Module, path: Path, args: argparse.Namespace) -> Path:
    """Draw one image's masks; returns the path written."""
    masks = model.activation_masks([read_input(cfg, path)])[0]
    drawn = draw_masks(read_image(str(path), "BGR"), masks, tile_width=args.tile_width)
    output = args.output / f"{path.stem}_masks.jpg"
    with replacing(output) as temporary:
        cv2.imwrite(str(temporary), drawn)
    return output


if __name__ == "__main__":
    sys.exit(main())
