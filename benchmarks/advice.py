"""The recipe of ``check --advise`` beside a small grid: AP after equally long trainings from the same weights.

A cell of the grid has the finest level p2 or p3 (three levels), and crops of 320 px or whole images whose short side is
scaled to 320 px; batch, rate and sampler are the recipe's. A training gets as many iterations as fit into ``--seconds``
of the processor (of the clock with a GPU), reading of images included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2_ext.config.load import load_config
from d2_ext.config.recipes import find_recipe
from d2_ext.data.check import check_folder
from d2_ext.data.formats import recognize
from d2_ext.engine import Trainer
from d2_ext.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from d2_ext.runs.advice import Advice, advice_text, advise
from d2_ext.runs.config import load_run_config
from d2_ext.runs.lr_range import try_rates

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from side_by_side import commit, write_json
from tabulate import tabulate

EXAMPLES = """examples:
  start from the quick start's weights, 90 s for each of the five trainings:
    python benchmarks/advice.py --data datasets/demo --name generated \\
        --weights output/quickstart_fcos/model_final.pth --json results/bench/advice.json
  only the proposal, after a change of its rules:
    python benchmarks/advice.py --data datasets/demo --name generated \\
        --weights output/quickstart_fcos/model_final.pth --cells proposal
"""
SIDE = 320  # px: of crops, and short side of scaled images
PROBED = 14  # steps that are timed before a training, the first two left out
GRID = {
    f"p{finest}-p{finest + 2}, {size}": (finest, size)
    for finest in (2, 3)
    for size in (f"crops of {SIDE} px", f"scaled to {SIDE} px")
}


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of a data set, as of train_net.py")
    parser.add_argument("--name", required=True, help="of the data set in the table")
    parser.add_argument("--weights", default="", help="that all trainings start from (those of the recipe)")
    parser.add_argument("--config-file", default="quickstart/fcos_R18_synthetic.yaml", help="recipe (%(default)s)")
    parser.add_argument("--seconds", type=float, default=90, help="of a training (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the trainings (that of the recipe)")
    parser.add_argument("--images", type=int, default=100, help="judged on so many at most (%(default)s)")
    parser.add_argument("--cells", nargs="+", choices=["proposal", *GRID], default=["proposal", *GRID], help="(all)")
    parser.add_argument("--label", default="proposal", help="name of the proposal in the table (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/advice"), help="run folders (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures; those of other data sets and cells stay")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    logging.getLogger("d2_ext").setLevel(logging.ERROR)
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.is_file() else []
    try:
        base = Path(find_recipe(args.config_file))
        recipe = load_config(base)
        reports = check_folder(recognize(args.data), decode=False)
        proposal = advise(next((r for r in reports if r.name == "train"), reports[0]))
        for cell in args.cells:
            label = args.label if cell == "proposal" else cell
            row = {"data": args.name, "cell": label, **measure(args, label, *settings(cell, proposal, recipe), base)}
            rows = [r for r in rows if (r["data"], r["cell"]) != (args.name, label)] + [row]
            if args.json:
                write_json(args.json, rows)
    except (CheckpointError, ConfigError, DatasetError, TrainingError) as error:
        print(f"advice: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(tabulate([row for row in rows if row["data"] == args.name], headers="keys", tablefmt="pipe", floatfmt=".1f"))
    return 0


def settings(cell: str, proposal: Advice, recipe: CfgNode) -> tuple[Advice, list[str]]:
    """Settings of a cell, and keys on top of them."""
    if cell == "proposal":
        return proposal, []
    finest, size = GRID[cell]
    plain = replace(proposal, scale=1.0, crop=SIDE, object_share=0.0, tile=0, repeat_threshold=0.0)
    plain = replace(plain, finest=finest, coarsest=finest + 2, batch=recipe.SOLVER.IMS_PER_BATCH)
    scaled = ["INPUT.CROP.ENABLED", "False", "INPUT.MIN_SIZE_TRAIN", f"({SIDE},)", "INPUT.MIN_SIZE_TEST", str(SIDE)]
    return plain, scaled if size.startswith("scaled") else []


def measure(args: argparse.Namespace, label: str, chosen: Advice, keys: list[str], base: Path) -> dict[str, Any]:
    """Train one cell for the time and judge it."""
    folder = args.output / args.name / label.replace(",", "").replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "recipe.yaml"
    path.write_text(advice_text(chosen, load_config(base), base.absolute()))
    keys = [*keys, "OUTPUT_DIR", str(folder), "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_PICTURES", "0"]
    keys += ["MODEL.WEIGHTS", args.weights] if args.weights else []
    keys += ["SEED", str(args.seed)] if args.seed is not None else []
    cfg = load_run_config(path, keys, data=args.data)
    tests = tuple(some_images(name, args.images) for name in cfg.DATASETS.TEST)

    # As many iterations as fit.
    ends: list[float] = []
    try_rates(cfg, lowest=1e-6, highest=1e-5, steps=PROBED, progress=lambda: ends.append(clock()))
    iterations = max(10, round(args.seconds * (PROBED - 2) / (ends[-1] - ends[1])))
    schedule = ["SOLVER.MAX_ITER", str(iterations), "SOLVER.WARMUP_ITERS", str(iterations // 10)]
    cfg = load_run_config(path, [*keys, *schedule, "SOLVER.CHECKPOINT_PERIOD", "1000000"], data=args.data)
    judged = cfg.clone()
    judged.defrost()
    judged.DATASETS.TEST = tests
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    cfg.freeze()

    with contextlib.redirect_stdout(io.StringIO()):
        seed_all_rng(cfg.SEED)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        start = clock()
        trainer.train()
        seconds = clock() - start
        found = Trainer.test(judged, trainer.model)["bbox"]
    cut = f"crops of {chosen.crop} px" if chosen.crop else "whole images"
    cut += f", tiles of {chosen.tile} px" if chosen.tile else ""
    row = {
        "levels": f"p{chosen.finest}-p{chosen.coarsest}",
        "size": f"scaled to {SIDE} px" if "INPUT.CROP.ENABLED" in keys else cut,
        "scale": round(chosen.scale, 3),
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "iterations": iterations,
        "seconds": round(seconds, 1),
        "AP": round(found["AP"], 2),
        "AP50": round(found["AP50"], 2),
        "images": sum(len(DatasetCatalog.get(name)) for name in tests),
        "commit": commit(),
    }
    print({"cell": label, **row}, file=sys.stderr, flush=True)
    return row


def some_images(name: str, most: int) -> str:
    """Register evenly chosen images of a data set, if it has more than ``most``; returns their name."""
    records = DatasetCatalog.get(name)
    if len(records) <= most:
        return name
    part = f"{name}_{most}"
    if part not in DatasetCatalog:
        chosen = [records[len(records) * i // most] for i in range(most)]
        DatasetCatalog.register(part, lambda: chosen)
        properties = MetadataCatalog.get(name).as_dict()
        MetadataCatalog.get(part).set(**{k: v for k, v in properties.items() if k not in ("name", "json_file")})
    return part


def clock() -> float:
    """Seconds that the processor worked, or of the clock where a GPU does the work."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


if __name__ == "__main__":
    sys.exit(main())
