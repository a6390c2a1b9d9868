"""Export a detector for use without Detectron2: one file, image in, boxes, scores and classes out.

The file is opened in its own runtime and must detect the same as the model on images before it gets its name; then a
table of differences, latency and size is printed. Height, width and number of the images are free.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.cli.command import add_overrides, command_parser, number_in, run_command
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.export import (
    BOX_TOLERANCE,
    SCORE_TOLERANCE,
    SUFFIXES,
    ExportableDetector,
    check_same,
    compare,
    convert_onnx,
    dense_maps,
    describe,
    eager_runtime,
    export_file,
    gathered_maps,
    load_runtime,
    need,
)
from d2_ext.files import naming
from d2_ext.images import read_input
from d2_ext.inference.loading import class_metadata, detector_config, load_detector
from d2_ext.runs.config import register_data

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray
from tabulate import tabulate

EXAMPLES = """examples:
  ONNX, compared on three images of the config's test set:
    python tools/export.py --config-file configs/quickstart/retinanet_ceasc_R18_synthetic.yaml \\
        --weights output/quickstart/model_final.pth --format onnx --output output/detector.onnx
  its sparse towers computed at the active positions only:
    python tools/export.py --config-file configs/quickstart/retinanet_ceasc_R18_synthetic.yaml \\
        --weights output/quickstart/model_final.pth --format onnx --sparse --output output/detector_sparse.onnx
  8-bit weights and activations, calibrated on images of your own:
    python tools/export.py --config-file configs/quickstart/fcos_R18_synthetic.yaml \\
        --weights output/quickstart_fcos/model_final.pth --format onnx --int8 --images a.jpg b.jpg \\
        --calibration photos/*.jpg --output output/detector_int8.onnx
  OpenVINO with 16-bit weights; a program of torch.export:
    python tools/export.py --config-file configs/quickstart/defcn_R18_synthetic.yaml \\
        --weights output/quickstart_defcn/model_final.pth --format openvino --half --output output/detector.xml
    python tools/export.py --config-file configs/quickstart/fcos_R18_synthetic.yaml \\
        --weights output/quickstart_fcos/model_final.pth --format torch --output output/detector.pt2

exit codes: 0 done, 1 weights or images cannot be used or the file does not detect the same, 2 wrong usage
"""
DEFAULT_IMAGES, CALIBRATION_IMAGES, LATENCY_RUNS = 3, 32, 5
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "onnx"), "torch": ()}


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--config-file", required=True, help="of the model")
    parser.add_argument("--weights", help="checkpoint; default: MODEL.WEIGHTS of the config")
    parser.add_argument("--format", required=True, choices=SUFFIXES, help="onnx, torch (torch.export) or openvino")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="*.onnx, *.pt2 or *.xml")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    rounding = parser.add_mutually_exclusive_group()
    rounding.add_argument("--half", action="store_true", help="16-bit weights: half the file (onnx, openvino)")
    rounding.add_argument("--int8", action="store_true", help="8-bit convolutions, calibrated (onnx, openvino)")
    parser.add_argument("--sparse", action="store_true", help="compute sparse towers at active positions only")
    parser.add_argument(
        "--images", nargs="+", type=Path, help=f"to compare on; default: {DEFAULT_IMAGES} of DATASETS.TEST"
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        type=Path,
        help=f"images for --int8; default: {CALIBRATION_IMAGES} of DATASETS.TRAIN",
    )
    parser.add_argument("--input-format", choices=("BGR", "RGB"), default="BGR", help="channels of the input (BGR)")
    parser.add_argument("--input-dtype", choices=("uint8", "float32"), default="uint8", help="of the input (uint8)")
    parser.add_argument(
        "--threads", type=number_in(int, 0), default=0, help="of the CPU, for the latency; 0: each side's choice"
    )
    add_overrides(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), export, argv)


def export(args: argparse.Namespace) -> None:
    """Export, compare, and only then give the file its name.

    Raises:
        ConfigError: wrong usage, or a package is missing.
        CheckpointError, DatasetError: weights or images cannot be used.
        ExportError: the model cannot be exported, or the file does not detect the same.
    """
    say = _Steps()
    # 1. What cannot work, and the images.
    _check_usage(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = detector_config(args.weights or "", args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    if not args.images or (args.int8 and not args.calibration):
        register_data(cfg)
    images = _read_images(cfg, args, "images", "TEST", DEFAULT_IMAGES)
    calibration = _read_images(cfg, args, "calibration", "TRAIN", CALIBRATION_IMAGES) if args.int8 else []
    # 2. The model, and the same as functions of tensors alone.
    say("reading the model")
    model, names = load_detector(cfg, fold=False)
    if args.sparse and not hasattr(getattr(model, "head", None), "hard_masks"):
        raise ConfigError(f"--sparse: {cfg.MODEL.META_ARCHITECTURE} of this config has no sparse towers.")
    detector = ExportableDetector(
        model,
        model_format=cfg.INPUT.FORMAT,
        input_format=args.input_format,
        tower_pass=gathered_maps if args.sparse else dense_maps,
    )
    metadata = describe(
        cfg,
        model,
        class_names=class_metadata(cfg, model.num_classes, names).get("thing_classes", []),
        input_format=args.input_format,
        input_dtype=args.input_dtype,
        weights="float16" if args.half else "int8" if args.int8 else "float32",
    )
    # 3. The file, under another name until it is known to detect the same.
    args.output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{args.output.stem}-", suffix=".part", dir=args.output.parent))
    try:
        path = work / args.output.name
        sides = {"model": eager_runtime(model, swap_channels=detector.swap_channels)}
        with naming(args.output):
            if args.int8:
                twin = write_with_8_bits(detector, path, args.format, metadata, calibration, say)
                sides["file in float32"] = load_runtime(twin, threads=args.threads, trusted=True)
            else:
                export_file(detector, path, args.format, metadata, say=say)
        sides["file"] = load_runtime(path, threads=args.threads, trusted=True)
        say(f"comparing file and model on {len(images)} images")
        found = compare(
            *([sides[side](x) for x in images] for side in ("model", "file")),
            score_thresh=model.test_score_thresh,
            max_detections=model.max_detections_per_image,
        )
        check_same(found, rounded=args.half or args.int8)
        say(f"measuring the latency of {', '.join(sides)}, {LATENCY_RUNS} times")
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(LATENCY_RUNS):
            for side, run in sides.items():
                start = time.perf_counter()
                run(images[0])
                times[side].append(1e3 * (time.perf_counter() - start))
        files = sorted(work.glob(f"{args.output.stem}.*"))  # OpenVINO's .bin before its .xml
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        for file in files:
            os.replace(file, args.output.with_suffix(file.suffix))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    # 4. What it is like.
    rows = [
        ["images with detections", found.images],
        ["detections of the model", found.detections],
        ["without partner within tolerances", found.unmatched],
        ["largest difference of a box", f"{found.max_box_diff:.1e} px (tolerance {BOX_TOLERANCE})"],
        ["largest difference of a score", f"{found.max_score_diff:.1e} (tolerance {SCORE_TOLERANCE})"],
        ["sure detections found again", f"{found.agreement:.1%}"],
        *([f"latency of the {side}", f"{statistics.median(ms):.1f} ms"] for side, ms in times.items()),
        ["size", f"{megabytes:.1f} MB"],
    ]
    print(tabulate(rows, headers=["", args.format], tablefmt="pipe", disable_numparse=True))
    print(f"\nWritten to {args.output.resolve()}")
    if args.int8:
        print(worth_of_8_bits(*(statistics.median(times[side]) for side in ("file", "file in float32"))))


def write_with_8_bits(
    detector: ExportableDetector,
    path: Path,
    kind: str,
    metadata: dict[str, Any],
    calibration: list[NDArray[Any]],
    say: _Steps,
) -> Path:
    """Write a file with 8 bits, and below its folder the one in float32 that it has to beat; returns the latter."""
    plain, twin = path.parent / "recorded" / "float32.onnx", path.parent / "float32" / path.name
    for file in (plain, twin):
        file.parent.mkdir()
    in_float32 = {**metadata, "weights": "float32"}
    export_file(detector, plain, "onnx", in_float32, say=say)
    convert_onnx(plain, path, kind, metadata, calibration=calibration, say=say)
    convert_onnx(plain, twin, kind, in_float32)
    return twin


def worth_of_8_bits(rounded: float, plain: float) -> str:
    """What 8 bits bring, from the milliseconds of an image with and without them."""
    if rounded < plain:
        return f"8 bits: {plain / rounded:.1f} times as fast as the same file in float32, on this machine."
    return (
        f"warning: 8 bits are slower than float32 on this machine, {rounded:.1f} against {plain:.1f} ms an image. "
        "Export without --int8, or try the other of --format onnx and --format openvino."
    )


class _Steps:
    """Prints what begins, with the seconds since the start: an export takes minutes."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, step: str) -> None:
        print(f"[{time.perf_counter() - self._start:5.0f} s] {step}", flush=True)


def _check_usage(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is built."""
    suffix = SUFFIXES[args.format]
    if args.output.suffix != suffix:
        raise ConfigError(f"--output {args.output}: files of --format {args.format} end with {suffix}.")
    for file in (args.output, *([args.output.with_suffix(".bin")] if args.format == "openvino" else [])):
        if file.exists() and not args.overwrite:
            raise ConfigError(f"--output: {file} is there already. Choose another name, or add --overwrite.")
    if args.calibration and not args.int8:
        raise ConfigError("--calibration is for --int8 alone.")
    if args.format == "torch" and (args.half or args.int8):
        raise ConfigError("--half and --int8 are for onnx and openvino; a torch program is written in float32.")
    for package in PACKAGES[args.format]:
        need(package, f"--format {args.format}")


def _read_images(cfg: CfgNode, args: argparse.Namespace, option: str, split: str, number: int) -> list[NDArray[Any]]:
    """Read images at the size of tests, each (1, 3, H, W) in the type and order of the exported input.

    Args:
        cfg: of the model.
        args: of the command.
        option: of the command that gives files; without it the first ones of a data set of the config are taken.
        split: "TRAIN" or "TEST", which of the config's data sets.
        number: how many to take of it.
    """
    paths = [str(path) for path in getattr(args, option) or []]
    if not paths:
        paths = [item["file_name"] for name in cfg.DATASETS[split][:1] for item in DatasetCatalog.get(name)[:number]]
    if not paths:
        raise DatasetError(f"DATASETS.{split} names no data set to take images from. Give some: --{option} a.jpg")
    found = [read_input(cfg, path)["image"][None].numpy().astype(args.input_dtype) for path in paths]
    return found if args.input_format == cfg.INPUT.FORMAT else [np.ascontiguousarray(x[:, ::-1]) for x in found]
