"""Latency of our light detectors beside those that a user would pick instead, from an image to its boxes, in one run.

Ours have random weights, their masks set so that a share of all positions is active. The peers are YOLO models of the
package ultralytics, which stays in an environment of its own (it is AGPL): its command ``yolo`` writes their files,
with random weights, too, and these are run here. torchvision's detectors run as they are. Each side runs in PyTorch and
in ONNX Runtime; what counts is its faster one. Every side begins with the same uint8 image: the YOLO files expect
float32 between 0 and 1, so that conversion is timed with them, as ours is a part of the file. YOLO11 gives candidates
without NMS, which it needs; all others give final boxes. With ``--bfloat16`` PyTorch runs every model a second time
under autocast, for CPUs that compute it. ``dev/make_bench_tables.py`` makes the table of docs/peers.md
from what ``--json`` writes.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError, ExportError
from d2_ext.export import eager_runtime
from d2_ext.inference.loading import load_detector
from d2_ext.layers.fold import fold_norms
from d2_ext.runs.config import load_run_config
from d2_ext.utils.analysis import count_on_images, totals

import numpy as np
import torch
from export import open_side, set_active_share
from numpy.typing import NDArray
from side_by_side import machine, medians, write_json

RECIPES = [f"Lite/{name}_{size}.yaml" for size in "ns" for name in ("fcos_sparse", "fcos", "defcn_sparse", "defcn")]
YOLO = ["yolo26n", "yolo26s", "yolo11n", "yolo11s"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BFLOAT16 = "PyTorch, bfloat16"
TORCHVISION = ["fcos_resnet50_fpn", "retinanet_resnet50_fpn"]
EXAMPLES = """examples:
  ours alone, small, on a machine where others work too:
    python benchmarks/peers.py --recipes Lite/fcos_sparse_n.yaml --torchvision --threads 1 --clock cpu
  all, with ultralytics installed in an environment of its own:
    python benchmarks/peers.py --yolo-command yolo_env/bin/yolo --json results/bench/peers.json
"""

Sides = dict[tuple[str, str], Callable[[], Any]]  # by model and runtime
Rows = dict[str, dict[str, Any]]  # what is known of each model beside its times


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="*", default=RECIPES, metavar="YAML", help="of ours")
    parser.add_argument("--yolo-command", default="", metavar="FILE", help="the command yolo; empty: no YOLO")
    parser.add_argument("--yolo", nargs="*", default=YOLO, metavar="NAME", help="models of ultralytics")
    parser.add_argument(
        "--torchvision", nargs="*", default=TORCHVISION, metavar="NAME", help="detectors of torchvision"
    )
    parser.add_argument("--active", type=float, default=10, help="share of active positions of ours, per cent")
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1344], metavar=("HEIGHT", "WIDTH"), help="px")
    parser.add_argument("--folder", type=Path, default=Path("output/peers"), help="for the exported files")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, the same for every side")
    parser.add_argument("--bfloat16", action="store_true", help="time PyTorch in bfloat16, too")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of all threads together")
    parser.add_argument("--json", default="", metavar="FILE", help="write the result there")
    return parser


def add_ours(sides: Sides, rows: Rows, recipe: str, image: NDArray[Any], args: argparse.Namespace) -> None:
    """One of our recipes: the model with folded norms, and its ONNX file.

    Raises:
        ConfigError: for a recipe that cannot be used.
        ExportError: if it cannot be exported.
    """
    torch.manual_seed(0)
    cfg = load_run_config(recipe, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model, _ = load_detector(cfg, fold=False)
    node = cfg.MODEL.get(cfg.MODEL.META_ARCHITECTURE.upper(), {})
    is_sparse = node.get("SPARSE", False)
    if is_sparse:
        set_active_share(model, image, args.active / 100)
    counts, _ = count_on_images(model, [{"image": torch.from_numpy(image[0])}])
    name = Path(recipe).stem
    rows[name] = {
        "model": name,
        "whose": "ours",
        "recipe": f"configs/{recipe}",
        "active": args.active if is_sparse else None,
        "parameters_M": sum(p.numel() for p in model.parameters()) / 1e6,
        "multiply_adds_G": totals(counts)["total"].multiply_adds / 1e9,
    }
    files = copy.copy(args)
    files.config = recipe
    exported, _ = open_side("onnx-sparse" if is_sparse else "onnx", model, cfg, files)
    sides[name, "ONNX Runtime"] = partial(exported, image)
    sides[name, "PyTorch"] = partial(eager_runtime(fold_norms(model)), image)


def add_yolo(sides: Sides, rows: Rows, name: str, image: NDArray[Any], args: argparse.Namespace) -> None:
    """A YOLO model with random weights, as the ONNX and TorchScript files that its own command writes.

    Raises:
        ExportError: if the command fails.
    """
    import onnxruntime

    files = {suffix: args.folder / f"{name}{suffix}" for suffix in (".onnx", ".torchscript")}
    for suffix, path in files.items():
        if path.exists():
            continue
        size = f"imgsz={args.size[0]},{args.size[1]}"
        command = [args.yolo_command, "export", f"model={name}.yaml", f"format={suffix[1:]}", size]
        done = subprocess.run(command, cwd=args.folder, capture_output=True, text=True)
        if done.returncode or not path.exists():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["without a word"]
            raise ExportError(f"--yolo {name}: the command {' '.join(command)} failed ({lines[-1]}).")
    script = torch.jit.load(str(files[".torchscript"])).eval()
    rows[name] = {
        "model": name,
        "whose": "ultralytics",
        "parameters_M": sum(p.numel() for p in script.parameters()) / 1e6,
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(str(files[".onnx"]), options, providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name
    sides[name, "ONNX Runtime"] = lambda: session.run(None, {input_name: image.astype(np.float32) / 255})
    sides[name, "PyTorch"] = lambda: script(torch.from_numpy(image).float() / 255)


def add_torchvision(sides: Sides, rows: Rows, name: str, image: NDArray[Any]) -> None:
    """A detector of torchvision with random weights, which gets the image at its own size.

    Raises:
        ConfigError: torchvision has none of this name.
    """
    import torchvision

    try:
        size = {"min_size": min(image.shape[2:]), "max_size": max(image.shape[2:])}
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **size).eval()
    except ValueError as error:
        raise ConfigError(f"--torchvision {name}: {error}") from error
    rows[name] = {
        "model": name,
        "whose": "torchvision",
        "parameters_M": sum(p.numel() for p in model.parameters()) / 1e6,
    }
    sides[name, "PyTorch"] = lambda: model([torch.from_numpy(image[0]).float() / 255])


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a model: milliseconds of an image in each runtime, and in its faster one (of float32)."""
    args.folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, *args.size), dtype=np.uint8)
    sides: Sides = {}
    rows: Rows = {}
    for recipe in args.recipes:
        add_ours(sides, rows, recipe, image, args)
    for name in args.yolo if args.yolo_command else ():
        add_yolo(sides, rows, name, image, args)
    for name in args.torchvision:
        add_torchvision(sides, rows, name, image)
    if args.bfloat16:
        runs = {name: run for (name, runtime), run in sides.items() if runtime == "PyTorch"}
        sides |= {(name, BFLOAT16): partial(in_bfloat16, run) for name, run in runs.items()}
    functions = {"\t".join(key): run for key, run in sides.items()}
    seconds = medians(functions, repeats=args.rounds, clock=CLOCKS[args.clock])
    for (name, runtime), key in zip(sides, functions):
        rows[name].setdefault("runtimes_ms", {})[runtime] = 1e3 * seconds[key]
    for row in rows.values():
        float32 = [ms for runtime, ms in row["runtimes_ms"].items() if runtime != BFLOAT16]
        row |= {"ms": min(float32), "size": args.size, "threads": args.threads}
    return list(rows.values())


def in_bfloat16(run: Callable[[], Any]) -> Any:
    """Call a model of PyTorch under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return run()


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print what was measured, from the fastest on."""
    print(f"{'model':24} {'M':>6} {'G':>6} {'PyTorch':>8} {'bfloat16':>8} {'ONNX':>8} {'ms':>7}")
    for row in sorted(rows, key=lambda row: row["ms"]):
        times = row["runtimes_ms"]
        figures = [times.get(runtime) for runtime in ("PyTorch", BFLOAT16, "ONNX Runtime")]
        text = " ".join(f"{'-' if ms is None else f'{ms:.0f}':>8}" for ms in figures)
        adds = row.get("multiply_adds_G")
        print(
            f"{row['model']:24} {row['parameters_M']:6.2f} {'-' if adds is None else f'{adds:.1f}':>6} {text} "
            f"{row['ms']:7.0f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        rows = measure(args)
    except ConfigError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    except (ExportError, OSError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    print(f"{machine()}; {args.size[0]} x {args.size[1]}, {args.threads} threads, {args.clock} clock")
    print_table(rows)
    if args.json:
        write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
