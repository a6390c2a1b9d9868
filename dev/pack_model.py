"""Put a trained detector into the package: weights, config and the figures of its card.

``d2_ext/model_zoo/NAME`` gets ``model.safetensors`` (averaged weights if the run kept any; large ones as float16),
``config.yaml`` (complete, without paths of the machine), and in ``README.md`` the lines between the two marks, made
from the records of ``dev/record_run.py``. The rest of the card is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.safe import read_checkpoint
from d2_ext.checkpoint.safetensors_file import write_safetensors
from d2_ext.cli.command import command_parser, run_command
from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError
from d2_ext.files import replacing

from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "d2_ext/model_zoo"
LARGEST = 8_000_000  # bytes
MARKS = "<!-- figures, made by dev/pack_model.py -->\n", "<!-- end of the figures -->\n"
EXAMPLES = """examples:
  weights and config, from a training:
    python dev/pack_model.py thermal_drone --run output/hit_uav_fcos_sparse_V22_lite_FPN64
  the figures of the card, once these weights are judged (dev/record_run.py --weights d2_ext://thermal_drone):
    python dev/pack_model.py thermal_drone --records results/runs/thermal_drone_*.json
"""


def pack(args: argparse.Namespace) -> None:
    """Write what the options ask for."""
    folder = MODELS / args.name
    folder.mkdir(parents=True, exist_ok=True)
    if args.run:
        pack_weights(args.run, args.name, folder)
    if args.records:
        card = folder / "README.md"
        before, middle, rest = card.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not middle or not end:
            raise ConfigError(f"{card} lacks the two lines {MARKS}.")
        records = [json.loads(path.read_text()) for path in args.records]
        with replacing(card) as path:
            path.write_text(f"{before}{middle}\n{figures(records)}\n{end}{after}")
    print(f"wrote {folder}")


def pack_weights(run: Path, name: str, folder: Path) -> None:
    """Weights and config of a run folder."""
    content = read_checkpoint(str(run / "model_final.pth"))
    names = content["class_names"]
    if (run / "model_final_ema.pth").is_file():
        content = read_checkpoint(str(run / "model_final_ema.pth"))
    # Counters of batches are no weights; a norm with a momentum does not look at them.
    tensors = {key: value for key, value in content["model"].items() if not key.endswith("num_batches_tracked")}
    write_safetensors(
        folder / "model.safetensors",
        tensors,
        class_names=names,
        metadata={"model": name, "licence": "CC-BY-4.0"},
        half=True,
    )
    size = (folder / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise ConfigError(f"{folder / 'model.safetensors'} has {size} bytes, expected at most {LARGEST}.")
    with replacing(folder / "config.yaml") as path:
        path.write_text(without_paths(load_config(run / "config.yaml"), name).dump())
    print(f"{len(tensors)} tensors, {size / 1e6:.2f} MB, classes {', '.join(names)}")


def without_paths(cfg: CfgNode, name: str) -> CfgNode:
    """The config as a user of the package gets it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = f"d2_ext://{name}"
    cfg.OUTPUT_DIR = f"./output/{name}"
    cfg.DATASETS.FOLDER = ""
    return cfg


def figures(records: Sequence[dict[str, Any]]) -> str:
    """Markdown table, a record a column."""
    rows = list(dict.fromkeys(metric for record in records for metric in record["metrics"]))
    lines = ["| COCO's metric, % | " + " | ".join(record["data"] for record in records) + " |"]
    lines.append("|---|" + "---|" * len(records))
    for row in rows:
        cells = [f"{record['metrics'][row]:.1f}" if row in record["metrics"] else "" for record in records]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    first = records[0]
    machine = re.sub("^1 thread", "one thread", first["machine"])
    lines += [
        "",
        f"{first['parameters_M']:.2f} M parameters; {first['multiply_adds_G']:.2f} G multiply-adds an image of 640x512 "
        f"at its own masks (mean of 20 images). Trained for {first['iterations']} iterations of {first['batch']} parts "
        f"of 256x256 px, {first['minutes']:.0f} minutes on {machine}; commit {first['commit']}, seed {first['seed']}, "
        f"judged on {first['date']}.",
    ]
    return "\n".join(lines) + "\n"


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("name", help="of the model")
    parser.add_argument("--run", type=Path, help="run folder of the training")
    parser.add_argument("--records", type=Path, nargs="+", help="json files of dev/record_run.py, a column each")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), pack, argv)


if __name__ == "__main__":
    raise SystemExit(main())
